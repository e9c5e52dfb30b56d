//! The published schemas are what the types say. `SMELT_BLESS=1` rewrites them.

use smelt_schemas::{kind, published_json_schemas};
use std::path::Path;

#[test]
fn the_published_schemas_are_those_of_the_types() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../schemas/generated");
    let json = published_json_schemas()
        .into_iter()
        .map(|(name, s)| (name.to_owned(), serde_json::to_string_pretty(&s).expect("a schema is plain data") + "\n"));
    let arrow = kind::tables()
        .into_iter()
        .map(|(k, s)| (format!("{}.arrow.txt", k.name), format!("{k}\n{}", kind::schema_text(&s))));
    for (name, text) in json.chain(arrow) {
        let path = folder.join(&name);
        if std::env::var_os("SMELT_BLESS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let published = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            published, text,
            "schemas/generated/{name} is not what the types say; SMELT_BLESS=1 cargo test writes it"
        );
    }
}
