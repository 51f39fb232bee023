//! Netlink messages and attributes as bytes.
//!
//! All of it is safe code over slices: a truncated or odd message gives `None` or ends early.

/// `struct nlmsghdr`
pub(crate) const HEADER_LEN: usize = 16;
/// `struct nfgenmsg`
pub(crate) const NFGENMSG_LEN: usize = 4;
/// `struct nlattr`
const ATTRIBUTE_HEADER_LEN: usize = 4;
/// `NLA_F_NESTED`
const NESTED: u16 = 1 << 15;
/// `NLA_TYPE_MASK`
const TYPE_MASK: u16 = 0x3fff;

/// A netlink message.
pub(crate) struct NetlinkMessage<'a> {
    pub(crate) message_type: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// The number of the socket that the message is an answer to, or a consequence of.
    pub(crate) port_id: u32,
    /// What follows the header.
    pub(crate) body: &'a [u8],
}

/// The messages in a buffer.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = NetlinkMessage<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(bytes, 0)? as usize;
        let body = bytes.get(HEADER_LEN..length)?;
        let message = NetlinkMessage {
            message_type: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            port_id: u32_at(bytes, 12)?,
            body,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes in a message or a nest, as type and payload.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let attribute = (
            u16_at(bytes, 2)? & TYPE_MASK,
            bytes.get(ATTRIBUTE_HEADER_LEN..length)?,
        );
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(attribute)
    })
}

/// The payload of the first attribute of a type.
pub(crate) fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(attribute, _)| *attribute == wanted)
        .map(|(_, payload)| payload)
}

/// A string attribute, without its NUL.
pub(crate) fn string(payload: &[u8]) -> Option<&str> {
    let end = payload
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(payload.len());
    std::str::from_utf8(&payload[..end]).ok()
}

/// A number in network byte order.
pub(crate) fn be32(payload: &[u8]) -> Option<u32> {
    payload.try_into().ok().map(u32::from_be_bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..at + 2)?
        .try_into()
        .ok()
        .map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..at + 4)?
        .try_into()
        .ok()
        .map(u32::from_ne_bytes)
}

/// Appends a header, to be completed by [`end_message`].
pub(crate) fn begin_message(
    out: &mut Vec<u8>,
    message_type: u16,
    flags: u16,
    sequence: u32,
    nfgenmsg: [u8; NFGENMSG_LEN],
) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&message_type.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&nfgenmsg);
    start
}

/// Writes the length into the header at `start`.
pub(crate) fn end_message(out: &mut [u8], start: usize) {
    let length = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// Appends an attribute.
pub(crate) fn put(out: &mut Vec<u8>, attribute: u16, payload: &[u8]) {
    let length = (ATTRIBUTE_HEADER_LEN + payload.len()) as u16;
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&attribute.to_ne_bytes());
    out.extend_from_slice(payload);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Appends a string attribute, with its NUL.
pub(crate) fn put_str(out: &mut Vec<u8>, attribute: u16, value: &str) {
    let start = begin_nest(out, attribute);
    out.extend_from_slice(value.as_bytes());
    out.push(0);
    let length = (out.len() - start) as u16;
    out[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    out[start + 2..start + 4].copy_from_slice(&attribute.to_ne_bytes());
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Appends the header of a nest, to be completed by [`end_nest`].
pub(crate) fn begin_nest(out: &mut Vec<u8>, attribute: u16) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&(attribute | NESTED).to_ne_bytes());
    start
}

/// Writes the length into the nest at `start`. A nest holds at most 64 KiB.
pub(crate) fn end_nest(out: &mut [u8], start: usize) {
    let length = (out.len() - start) as u16;
    out[start..start + 2].copy_from_slice(&length.to_ne_bytes());
}
