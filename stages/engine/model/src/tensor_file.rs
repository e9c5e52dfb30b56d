//! safetensors files, written tensor by tensor: no file is ever whole in memory.

use safetensors::tensor::{Metadata, TensorInfo, View};
use std::collections::HashMap;
use std::io::{self, Write};

/// Writes `tensors` as one safetensors file, byte for byte what `safetensors::serialize` gives: names are unique,
/// larger element types come first, then names in order. A tensor's bytes are asked for when they are written.
pub fn write_tensors<V: View>(
    mut tensors: Vec<(String, V)>,
    metadata: Option<HashMap<String, String>>,
    out: &mut (impl Write + ?Sized),
) -> io::Result<()> {
    tensors.sort_by(|(a, x), (b, y)| y.dtype().cmp(&x.dtype()).then_with(|| a.cmp(b)));
    let mut end = 0;
    let infos = tensors.iter().map(|(name, view)| {
        let start = end;
        end += view.data_len();
        (name.clone(), TensorInfo { dtype: view.dtype(), shape: view.shape().to_vec(), data_offsets: (start, end) })
    });
    let header = Metadata::new(metadata, infos.collect()).map_err(io::Error::other)?;
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    tensors.iter().try_for_each(|(_, view)| out.write_all(&view.data()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::{Dtype, TensorView};

    #[test]
    fn the_file_is_what_the_library_writes() {
        let bytes: Vec<u8> = (0..96).collect();
        let view = |dtype, shape: &[usize], len: usize| TensorView::new(dtype, shape.to_vec(), &bytes[..len]).unwrap();
        let tensors = || {
            [
                ("b", view(Dtype::F32, &[2, 3], 24)),
                ("c", view(Dtype::BF16, &[5], 10)),
                ("a", view(Dtype::F32, &[1], 4)),
                ("d", view(Dtype::F8_E4M3, &[3], 3)),
                ("e", view(Dtype::F64, &[0, 4], 0)),
            ]
            .map(|(name, view)| (name.to_owned(), view))
        };
        for metadata in [None, Some(HashMap::from([("format".to_owned(), "pt".to_owned())]))] {
            let mut written = Vec::new();
            write_tensors(tensors().into(), metadata.clone(), &mut written).unwrap();
            assert_eq!(written, safetensors::serialize(tensors(), metadata).unwrap());
        }
    }
}
