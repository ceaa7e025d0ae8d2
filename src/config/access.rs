//! Who may attach to which agents.
//!
//! Floor 0, part of `config`. A rule names a user or a group and a pattern of agent names; the
//! runtime's own user may attach to every agent, everybody else (root too) needs a rule. Names are
//! looked up once, at start, in `/etc/passwd` and `/etc/group`; directory services are not asked,
//! since their libraries may block and load code: write the numeric id there.
//!
//! Invariants
//! - without rules nobody but the runtime's own user is allowed.
//! - a peer is matched by the uid and gid that the kernel gives for its socket, never by what it
//!   says. The kernel gives one gid, so a group's members named in `/etc/group` are matched by uid.

use std::fs;

use super::{ACCESS_RULES_MAX, Config, ConfigError, Problem};

/// Longest pattern, in bytes: as long as the longest name of an agent.
const PATTERN_BYTES_MAX: usize = 255;

/// One rule: this user, or this group, may attach to the agents whose names match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRule {
    /// Whom it lets in.
    pub who: Who,
    /// To which agents: their name, `*` standing for any text, also none.
    pub agents: String,
}

/// A user or a group, by name or by decimal id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// One user.
    User(String),
    /// All whose primary group it is, and all whom `/etc/group` lists in it.
    Group(String),
}

/// The access rules with every name resolved: a pure matcher, cheap to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    own_uid: u32,
    rules: Vec<ResolvedRule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ResolvedRule {
    gid: Option<u32>,
    uids: Vec<u32>,
    agents: String,
}

impl ResolvedRule {
    fn lets_in(&self, uid: u32, gid: u32) -> bool {
        self.gid == Some(gid) || self.uids.contains(&uid)
    }
}

impl Access {
    /// May a process of this user and group attach to this agent?
    #[must_use]
    pub fn allows(&self, uid: u32, gid: u32, agent_name: &str) -> bool {
        let lets_to = |rule: &ResolvedRule| {
            rule.lets_in(uid, gid) && matches(rule.agents.as_bytes(), agent_name.as_bytes())
        };
        uid == self.own_uid || self.rules.iter().any(lets_to)
    }

    /// Is this the runtime's own user?
    #[must_use]
    pub fn is_own(&self, uid: u32) -> bool {
        uid == self.own_uid
    }

    /// May a process of this user and group attach to any agent at all?
    #[must_use]
    pub fn admits(&self, uid: u32, gid: u32) -> bool {
        uid == self.own_uid || self.rules.iter().any(|rule| rule.lets_in(uid, gid))
    }

    /// Looks the rules' names up on this machine.
    ///
    /// # Errors
    /// A name that `/etc/passwd` or `/etc/group` does not know.
    pub fn resolve(config: &Config, own_uid: u32) -> Result<Self, ConfigError> {
        // A machine without these files has no names: only ids resolve.
        let read = |path| fs::read(path).unwrap_or_default();
        let (passwd, group) = (read("/etc/passwd"), read("/etc/group"));
        let (passwd, group) = (
            String::from_utf8_lossy(&passwd),
            String::from_utf8_lossy(&group),
        );
        Self::resolve_in(config, own_uid, &passwd, &group)
    }

    /// Looks the rules' names up in the text of a `passwd` and a `group` file.
    ///
    /// # Errors
    /// A name that they do not know.
    pub fn resolve_in(
        config: &Config,
        own_uid: u32,
        passwd: &str,
        group: &str,
    ) -> Result<Self, ConfigError> {
        let mut rules = Vec::with_capacity(config.access.len());
        for (index, rule) in config.access.iter().enumerate() {
            let agents = rule.agents.clone();
            rules.push(match &rule.who {
                Who::User(name) => {
                    let uid = id_of(name, passwd).ok_or_else(|| {
                        let key = format!("access[{index}].user");
                        config.error(&key, format!("{name:?}"), Problem::UnknownUser)
                    })?;
                    ResolvedRule {
                        gid: None,
                        uids: vec![uid],
                        agents,
                    }
                }
                Who::Group(name) => {
                    let gid = id_of(name, group).ok_or_else(|| {
                        let key = format!("access[{index}].group");
                        config.error(&key, format!("{name:?}"), Problem::UnknownGroup)
                    })?;
                    ResolvedRule {
                        gid: Some(gid),
                        uids: members(gid, passwd, group),
                        agents,
                    }
                }
            });
        }
        Ok(Self { own_uid, rules })
    }
}

pub(super) fn validate(config: &Config) -> Result<(), ConfigError> {
    let count = config.access.len();
    if count > ACCESS_RULES_MAX {
        return Err(config.error("access", "", Problem::TooManyRules { count }));
    }
    for (index, rule) in config.access.iter().enumerate() {
        if rule.agents.is_empty() || rule.agents.len() > PATTERN_BYTES_MAX {
            let key = format!("access[{index}].agents");
            return Err(config.error(&key, format!("{:?}", rule.agents), Problem::NotAPattern));
        }
    }
    Ok(())
}

/// The id in the third field of the line that begins with `name`; a number is its own id unless
/// some line bears it as a name. `passwd` and `group` agree in these fields.
fn id_of(name: &str, table: &str) -> Option<u32> {
    let by_name = table.lines().map(fields).find(|fields| fields[0] == name);
    let id: Option<u32> = match by_name {
        Some(fields) if !name.is_empty() => fields[2].parse().ok(),
        _ if name.bytes().all(|byte| byte.is_ascii_digit()) => name.parse().ok(),
        _ => None,
    };
    // The last number is the kernel's way to say "nobody knows".
    id.filter(|id| *id != u32::MAX)
}

/// The users whom the group file lists as members of `gid`; names without a user are no one.
fn members(gid: u32, passwd: &str, group: &str) -> Vec<u32> {
    let lines = group
        .lines()
        .map(fields)
        .filter(|fields| fields[2].parse() == Ok(gid));
    let names = lines.flat_map(|fields| fields[3].split(','));
    // By name only: a member called "12" that is not in passwd must not become uid 12.
    let uid = |name: &str| {
        let user = passwd
            .lines()
            .map(fields)
            .find(|fields| fields[0] == name)?;
        user[2].parse().ok()
    };
    names
        .filter(|name| !name.is_empty())
        .filter_map(uid)
        .collect()
}

fn fields(line: &str) -> [&str; 4] {
    let mut fields = line.split(':');
    std::array::from_fn(|_| fields.next().unwrap_or(""))
}

/// Does the name match the pattern, `*` standing for any text? Greedy with one step back, so at
/// worst the product of both lengths, whatever the pattern.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                p += 1;
                back = Some((p, n));
            }
            Some(byte) if *byte == name[n] => (p, n) = (p + 1, n + 1),
            _ => {
                let Some((after_star, taken)) = back else {
                    return false;
                };
                back = Some((after_star, taken + 1));
                (p, n) = (after_star, taken + 1);
            }
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:100::/:\nbob:x:1001:100::/:\n\
                          7:x:1007:100::/:\nbroken\n:x:5:5::/:\n";
    const GROUP: &str = "users:x:100:\ncrew:x:200:bob,nobody,12\nempty:x::\n";

    fn access(rules: &[(Who, &str)]) -> Result<Access, ConfigError> {
        let rule = |(who, agents): &(Who, &str)| AccessRule {
            who: who.clone(),
            agents: (*agents).to_owned(),
        };
        let config = Config {
            access: rules.iter().map(rule).collect(),
            ..Config::default()
        };
        Access::resolve_in(&config, 42, PASSWD, GROUP)
    }

    fn user(name: &str) -> Who {
        Who::User(name.to_owned())
    }

    fn group(name: &str) -> Who {
        Who::Group(name.to_owned())
    }

    #[test]
    fn without_rules_only_the_own_user_enters() {
        let access = access(&[]).unwrap();
        assert!(access.allows(42, 100, "any"));
        assert!(!access.allows(0, 0, "any"), "root is not special");
        assert!(!access.allows(1000, 42, "any"), "a gid is not a uid");
    }

    #[test]
    fn a_rule_lets_in_whom_it_names_and_no_more() {
        let access = access(&[
            (user("ann"), "ann-*"),
            (group("crew"), "*"),
            (user("7"), "x"),
        ])
        .unwrap();
        assert!(access.allows(1000, 100, "ann-7"));
        assert!(!access.allows(1000, 100, "bob-7"));
        assert!(!access.allows(1001 + 1, 100, "ann-7"));
        assert!(access.allows(5000, 200, "bob-7"), "primary group");
        assert!(access.allows(1001, 100, "bob-7"), "listed member");
        assert!(
            !access.allows(12, 12, "bob-7"),
            "a member's name is never an id"
        );
        assert!(access.admits(1000, 100) && access.admits(5000, 200) && access.admits(42, 1));
        assert!(!access.admits(7, 100) && !access.admits(0, 0) && !access.admits(12, 12));
        assert!(access.allows(1007, 100, "x"), "the user who is called 7");
        assert!(!access.allows(7, 100, "x"));
    }

    #[test]
    fn ids_need_no_entry_and_names_do() {
        let access = access(&[(user("31337"), "*"), (group("99"), "*")]).unwrap();
        assert!(access.allows(31337, 1, "a") && access.allows(1, 99, "a"));
        for (who, message) in [
            (user("eve"), "access[0].user = \"eve\": no such user"),
            (user(""), "access[0].user = \"\": no such user"),
            (user("broken"), "access[0].user"),
            (user("4294967296"), "access[0].user"),
            (user("4294967295"), "access[0].user"),
            (group("ann"), "access[0].group = \"ann\": no such group"),
            (group("empty"), "access[0].group"),
        ] {
            let error = self::access(&[(who, "*")]).expect_err(message).to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }

    /// The definition of the pattern, exponential and obvious.
    fn model(pattern: &[u8], name: &[u8]) -> bool {
        match pattern {
            [] => name.is_empty(),
            [b'*', rest @ ..] => (0..=name.len()).any(|skip| model(rest, &name[skip..])),
            [byte, rest @ ..] => name.first() == Some(byte) && model(rest, &name[1..]),
        }
    }

    proptest! {
        #[test]
        fn patterns_match_as_defined(pattern in "[ab*]{0,8}", name in "[ab*]{0,10}") {
            let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
            prop_assert_eq!(matches(pattern, name), model(pattern, name));
        }
    }
}
