//! The form in which two URLs are the same page.

use url::Url;

/// The first half of blake3 of a URL without scheme, user, `www.`, fragment and slashes at the end of its path; the
/// host in lower case, a port only where it is not the scheme's own. The query counts. `None` for an empty one.
///
/// What is no URL with a host counts as it stands.
pub(crate) fn digest(url: &str) -> Option<[u8; 16]> {
    let url = url.trim();
    if url.is_empty() {
        return None;
    }
    let digest = blake3::hash(same_page(url).as_deref().unwrap_or(url).as_bytes());
    digest.as_bytes()[..16].try_into().ok()
}

fn same_page(url: &str) -> Option<String> {
    let parsed = match url.contains("://") {
        true => Url::parse(url),
        false => Url::parse(&format!("http://{}", url.trim_start_matches('/'))),
    };
    let parsed = parsed.ok()?;
    let host = parsed.host_str()?;
    let mut page = host.strip_prefix("www.").unwrap_or(host).trim_end_matches('.').to_owned();
    if let Some(port) = parsed.port() {
        page += &format!(":{port}");
    }
    page += parsed.path().trim_end_matches('/');
    if let Some(query) = parsed.query().filter(|query| !query.is_empty()) {
        page += &format!("?{query}");
    }
    Some(page)
}

#[cfg(test)]
mod tests {
    use super::digest;

    #[test]
    fn urls_of_one_page_are_the_same() {
        let page = digest("https://example.com/a/b");
        for same in [
            "http://www.Example.com/a/b/",
            "https://example.com:443/a/b#part",
            " example.com/a/b? ",
            "//EXAMPLE.com/a/./b",
            "ftp://user:word@example.com/a/b",
        ] {
            assert_eq!(digest(same), page, "{same}");
        }
        for other in [
            "https://example.com/a/B",
            "https://example.com/a",
            "https://example.com/a/b?page=2",
            "https://example.com:8080/a/b",
            "https://w.example.com/a/b",
            "mailto:a@example.com",
        ] {
            assert_ne!(digest(other), page, "{other}");
        }
        assert_eq!(digest("http://example.com"), digest("https://www.example.com/"));
        assert_eq!(digest("urn:isbn:1"), digest("urn:isbn:1"));
        assert_ne!(digest("file:///a"), digest("file:///b"));
        assert_eq!(digest(" "), None);
    }
}
