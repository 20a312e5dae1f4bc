//! By what a certificate is known that nobody vouches for: `sha256:` and its digest.

use std::fmt::Write;

/// Of a certificate in DER.
pub fn of(certificate: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
    let mut text = "sha256:".to_owned();
    for byte in digest.as_ref() {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// As it is told here, or as openssl(1) does: `AB:CD:...`.
pub fn parse(text: &str) -> Result<String, String> {
    let digits = text.trim().to_ascii_lowercase();
    let digits = digits.strip_prefix("sha256:").unwrap_or(&digits).replace(':', "");
    match digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => Ok(format!("sha256:{digits}")),
        false => Err("a fingerprint is sha256: and 64 hexadecimal digits".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_is_written() {
        let told = of(b"abc");
        assert_eq!(
            told,
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(parse(&told), Ok(told.clone()));
        let openssl: Vec<String> = told.as_bytes()[7..]
            .chunks(2)
            .map(|pair| String::from_utf8_lossy(pair).to_uppercase())
            .collect();
        assert_eq!(parse(&openssl.join(":")), Ok(told.clone()));
        for wrong in ["", "sha256:", "sha1:00", &told[..70], &format!("{told}0")] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
