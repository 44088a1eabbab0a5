//! Other tools' refusal to forward.
//!
//! A packet must pass every chain of the forward hook, and Docker, among others, gives the shared `filter` tables' FORWARD the policy
//! drop: nobody would reach the world then, and no visitor a published port. At the end of these chains atoll adds that its uplink may
//! pass. Rules of others, which come before, hold; what may go in and out is still decided by the ring and by atoll's own table. A table
//! of any other name is its owner's and never touched: it is told of.

use crate::error::NetworkError;
use crate::namespace::Namespace;
use crate::rules;

/// The chains that tools share. SOURCE: iptables(8), and where iptables-nft keeps them.
const SHARED: [(&str, &str, &str); 2] = [("ip", "filter", "FORWARD"), ("ip6", "filter", "FORWARD")];

/// A chain that refuses to forward what none of its rules accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedChain {
    family: String,
    table: String,
    chain: String,
}

impl std::fmt::Display for ClosedChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.chain)
    }
}

impl ClosedChain {
    pub(crate) fn is_shared(&self) -> bool {
        SHARED.contains(&(&self.family, &self.table, &self.chain))
    }
}

/// Lets the uplink pass where that is missing. Gives the chains of others that stay closed.
pub(crate) fn let_through(
    host: &Namespace,
    uplink: &str,
) -> Result<Vec<ClosedChain>, NetworkError> {
    let (shared, others): (Vec<_>, Vec<_>) =
        closed_chains(&list_chains(host)?).into_iter().partition(ClosedChain::is_shared);
    for chain in shared {
        if handles(&list_rules(host, &chain)?, uplink).is_empty() {
            let rule = |way| format!("add rule {chain} {way} \"{uplink}\" counter accept\n");
            rules::load(host, &(rule("iifname") + &rule("oifname")))?;
        }
    }
    Ok(others)
}

/// Takes back what [`let_through`] added.
pub(crate) fn withdraw(host: &Namespace, uplink: &str) -> Result<(), NetworkError> {
    let text = list_chains(host)?;
    for (family, table, name) in SHARED {
        let chain = ClosedChain { family: family.into(), table: table.into(), chain: name.into() };
        // Its policy may be another by now.
        if !chains(&text).any(|(it, _)| it == chain) {
            continue;
        }
        let handles = handles(&list_rules(host, &chain)?, uplink);
        let rule = |handle: u64| format!("delete rule {chain} handle {handle}\n");
        let text: String = handles.into_iter().map(rule).collect();
        if !text.is_empty() {
            rules::load(host, &text)?;
        }
    }
    Ok(())
}

/// The chains of this namespace that refuse to forward by default.
pub(crate) fn closed(host: &Namespace) -> Result<Vec<ClosedChain>, NetworkError> {
    list_chains(host).map(|text| closed_chains(&text))
}

fn list_chains(host: &Namespace) -> Result<String, NetworkError> {
    rules::list(host, &["list", "chains"])
}

fn list_rules(host: &Namespace, chain: &ClosedChain) -> Result<String, NetworkError> {
    rules::list(host, &["-a", "list", "chain", &chain.family, &chain.table, &chain.chain])
}

fn closed_chains(text: &str) -> Vec<ClosedChain> {
    let closed = |(_, line): &(ClosedChain, &str)| {
        line.contains(" hook forward ") && line.contains("policy drop;")
    };
    chains(text).filter(closed).map(|(chain, _)| chain).collect()
}

/// Every chain with the line that says where it hooks. SOURCE: what nft(8) prints.
fn chains(text: &str) -> impl Iterator<Item = (ClosedChain, &str)> {
    let mut table = None;
    let mut chain = None;
    text.lines().filter_map(move |line| {
        let mut words = line.split_whitespace();
        match (words.next()?, words.next()) {
            ("table", Some(family)) => {
                table = words.next().map(|name| (family.to_owned(), name.to_owned()));
                None
            }
            ("chain", Some(name)) => {
                chain = Some(name.to_owned());
                None
            }
            ("type", _) => {
                let ((family, table), chain) = (table.clone()?, chain.clone()?);
                Some((ClosedChain { family, table, chain }, line))
            }
            _ => None,
        }
    })
}

/// The handles of the rules about an interface.
fn handles(text: &str, uplink: &str) -> Vec<u64> {
    let name = format!("ifname \"{uplink}\" ");
    let handle = |line: &str| line.rsplit_once("# handle ")?.1.trim().parse().ok();
    text.lines().filter(|line| line.contains(&name)).filter_map(handle).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAINS: &str = "table inet atoll_x {
\tchain forward {
\t\ttype filter hook forward priority filter - 10; policy accept;
\t}
}
table ip filter {
\tchain INPUT {
\t\ttype filter hook input priority filter; policy drop;
\t}
\tchain DOCKER {
\t}
\tchain FORWARD {
\t\ttype filter hook forward priority filter; policy drop;
\t}
}
table inet own {
\tchain through {
\t\ttype filter hook forward priority 5; policy drop;
\t}
}
";

    #[test]
    fn closed_chains_of_the_forward_hook_are_found() {
        let found: Vec<String> = closed_chains(CHAINS).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["ip filter FORWARD", "inet own through"]);
        let shared: Vec<bool> = closed_chains(CHAINS).iter().map(ClosedChain::is_shared).collect();
        assert_eq!(shared, [true, false]);
        assert_eq!(closed_chains("nonsense\ntable\nchain\ntype hook forward policy drop;"), []);
    }

    #[test]
    fn rules_about_the_uplink_are_found_by_its_whole_name() {
        let text = "table ip filter {
\tchain FORWARD { # handle 3
\t\ttype filter hook forward priority filter; policy drop;
\t\tiifname \"at-a\" counter packets 0 bytes 0 accept # handle 7
\t\toifname \"at-a\" counter packets 0 bytes 0 accept # handle 8
\t\toifname \"at-ab\" counter packets 0 bytes 0 accept # handle 9
\t}
}
";
        assert_eq!(handles(text, "at-a"), [7, 8]);
        assert_eq!(handles(text, "at-abc"), Vec::<u64>::new());
    }
}
