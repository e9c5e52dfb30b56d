//! Runs that are not cut inside: URLs and host names.

use super::tables::{TOP_DOMAIN, class};

/// Whether `x`, which holds no white space, is a URL or a host name: scheme, user, host, port and path, all but the
/// host optional.
pub(super) fn is_url(x: &str) -> bool {
    let bytes = x.as_bytes();
    if !bytes.contains(&b'.') {
        return false;
    }
    // A host may begin at the front, behind a scheme, or behind any "@" that has something before it.
    let scheme = x.find("://").filter(|&at| {
        x[..at].chars().count() >= 2
            && x[..at].chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '+' | '-' | '.'))
    });
    let users = bytes.iter().enumerate().skip(1).filter(|&(_, &b)| b == b'@').map(|(at, _)| at + 1);
    is_host(x) || scheme.is_some_and(|at| is_host(&x[at + 3..])) || users.into_iter().any(|at| is_host(&x[at..]))
}

/// Whether `x` is a host, with a port and a path or without.
fn is_host(x: &str) -> bool {
    // No host holds an "@": to look further would cost a square of the text where many stand in a row.
    let end = x.find([':', '/', '?', '#', '@']).unwrap_or(x.len());
    let (host, rest) = x.split_at(end);
    let path = match rest.strip_prefix(':') {
        Some(port) => {
            let digits: usize = port.chars().take_while(|&c| crate::is_digit(c)).map(char::len_utf8).sum();
            let (digits, path) = port.split_at(digits);
            if !(2..=5).contains(&digits.chars().count()) {
                return false;
            }
            path
        }
        None => rest,
    };
    (path.is_empty() || path.starts_with(['/', '?', '#'])) && (is_domain(host) || is_public_address(host))
}

fn is_domain(host: &str) -> bool {
    let Some((names, top)) = host.rsplit_once('.') else { return false };
    let is_inner = |c: char| c.is_ascii_alphanumeric() || ('\u{a1}'..='\u{ffff}').contains(&c);
    let is_name = |name: &str| {
        name.starts_with(is_inner)
            && name.ends_with(is_inner)
            && name.chars().all(|c| is_inner(c) || matches!(c, '_' | '-'))
            && (name.len() <= 64 || name.chars().count() <= 64)
    };
    top.chars().all(|c| class(c) & TOP_DOMAIN != 0)
        && (2..=63).contains(&top.chars().count())
        && names.split('.').all(is_name)
}

/// Whether `host` is an IPv4 address that is neither private nor ends in 0 or 255.
fn is_public_address(host: &str) -> bool {
    let mut parts = host.split('.');
    let mut next = || {
        let part = parts.next()?;
        let is_number = (1..=3).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        if is_number { part.parse::<u16>().ok().map(|value| (value, part)) } else { None }
    };
    let (Some((a, first)), Some((b, second)), Some((c, third)), Some((d, fourth))) = (next(), next(), next(), next())
    else {
        return false;
    };
    // A zero may lead only a middle part of two digits.
    let is_middle = |value: u16, part: &str| value <= 255 && (part.len() < 3 || value >= 100);
    let is_private = matches!((a, b), (10 | 127, _) | (169, 254) | (192, 168) | (172, 16..=31));
    parts.next().is_none()
        && !is_private
        && (1..=223).contains(&a)
        && !first.starts_with('0')
        && is_middle(b, second)
        && is_middle(c, third)
        && (1..=254).contains(&d)
        && !fourth.starts_with('0')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::english::english_words;

    #[test]
    fn urls_and_addresses_stay_whole() {
        for url in [
            "http://example.com/a/b?c=d",
            "www.example.com",
            "a@b.example.com",
            "me:pass@x.org:8080/x",
            "8.8.8.8:80/x",
            "git+ssh://ex-a_mple.com",
        ] {
            assert_eq!(english_words(url), [url]);
        }
        assert_eq!(english_words("192.168.0.1/x"), ["192.168.0.1", "/", "x"]);
        assert_eq!(english_words("8.8.8.0/x"), ["8.8.8.0", "/", "x"]);
        assert!(is_public_address("1.02.3.4") && !is_public_address("1.012.3.4") && !is_public_address("1.2.3"));
    }
}
