//! Port numbers by name: `nft -S` writes them as the services database of its machine has them.

use std::num::NonZeroU16;

/// `name port`, from Debian 12's `/etc/services`.
const SERVICES: &str = include_str!("services.txt");

/// A port, by number or name.
pub(super) fn port(text: &str) -> Option<NonZeroU16> {
    let number = match text.as_bytes().first()? {
        b'0'..=b'9' => text.parse().ok(),
        _ => SERVICES.lines().find_map(|line| {
            let (name, number) = line.split_once(' ')?;
            (name == text).then(|| number.parse().ok())?
        }),
    };
    NonZeroU16::new(number?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_numbers_and_names() {
        let number = |text| port(text).map(NonZeroU16::get);
        assert_eq!(number("53"), Some(53));
        assert_eq!(number("domain"), Some(53));
        assert_eq!(number("https"), Some(443));
        for unknown in ["", "0", "65536", "no-such-service", "-1"] {
            assert_eq!(number(unknown), None, "{unknown}");
        }
    }
}
