//! What others do to the tables, as scripts for nft. Entry point: [`script`].

use fastrand::Rng;

use crate::expected::Expected;
use crate::objects::one_of;

/// Something that makes the tables differ from what they should be, or tries to: what it refers to
/// may have gone meanwhile, and then nft refuses it.
///
/// What drops all packets spares those to the API server: a process that starts then would never
/// hear what it has to mend.
pub(crate) fn script(rng: &mut Rng, expected: &Expected, api_port: u16) -> String {
    let is_ipv6 = rng.bool();
    let family = if is_ipv6 { "ip6" } else { "ip" };
    let table = format!("{family} nftproxy");
    let objects = expected.objects(is_ipv6);
    let chain = one_of(rng, &objects.chains);
    let (set, key) = one_of(rng, &objects.elements);
    match rng.u8(..18) {
        0..=2 => format!("flush chain {table} {chain}"),
        3 | 4 => format!("flush set {table} {set}"),
        5..=7 => {
            let n = rng.usize(1..6);
            let elements = (0..n).map(|_| one_of(rng, &objects.elements));
            elements
                .map(|(set, key)| format!("delete element {table} {set} {{ {key} }}\n"))
                .collect()
        }
        8 => format!("delete table {table}"),
        9 => format!("flush table {table}"),
        10 => "flush ruleset".to_owned(),
        11 => format!("flush ruleset {family}"),
        12 => format!("delete table {table}; add table {table}"),
        13 => "flush ruleset; add table inet filter; \
               add chain inet filter input { type filter hook input priority 0; }"
            .to_owned(),
        14 => one_of(
            rng,
            &[
                format!("add chain {table} foreign"),
                format!("add set {table} foreign {{ type ipv4_addr; }}"),
                format!(
                    "add chain {table} foreign \
                     {{ type filter hook forward priority 0; policy drop; }}"
                ),
                format!("add table {table} {{ flags dormant; }}"),
            ],
        ),
        15 => one_of(
            rng,
            &[
                format!("add rule {table} {chain} counter"),
                format!("insert rule {table} {chain} th dport != {api_port} drop"),
                format!("insert rule {table} {chain} accept"),
            ],
        ),
        16 => {
            let address = if is_ipv6 {
                "2001:db8::99"
            } else {
                "192.0.2.99"
            };
            format!("add element {table} cluster-ips {{ {address} }}")
        }
        _ => format!(
            "delete element {table} {set} {{ {key} }}; \
             add element {table} {set} {{ {key} : drop }}"
        ),
    }
}

/// Something big in a table of another's, which is none of our business.
pub(crate) fn others(rng: &mut Rng) -> String {
    let first = rng.u8(..);
    let elements: Vec<_> = (0..5000)
        .map(|n| format!("10.{first}.{}.{}", n / 256, n % 256))
        .collect();
    let elements = elements.join(", ");
    format!(
        "add table ip other; add set ip other s {{ type ipv4_addr; }}; flush set ip other s; \
         add element ip other s {{ {elements} }}"
    )
}
