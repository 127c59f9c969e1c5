//! The `targets` of a config: the scheme of each module.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;

use crate::plan::compressed_tensors::QuantizedModule;
use crate::plan::compressed_tensors::ignore::HEADS;
use crate::plan::compressed_tensors::names::{Cut, escape_tail, hits_any, in_list, layers_pattern};

/// The targets of each group. A single group gets the class. Several groups get regexes over tails, and those of
/// different groups do not overlap.
pub(crate) fn targets(modules: Modules<'_, '_>, groups: usize) -> Vec<Vec<String>> {
    if groups == 1 {
        let mut targets = vec!["Linear".to_owned()];
        targets.extend(heads(modules));
        return vec![targets];
    }
    let mut tails: BTreeMap<String, Tail<'_>> = BTreeMap::new();
    for member in modules.iter() {
        let tail = Cut::at_layer(member.name).map_or(member.name, |cut| cut.rest);
        let tail = tails.entry(escape_tail(tail)).or_default();
        tail.groups.insert(member.group);
        tail.members.push(member);
    }
    if tails.len() > MAX_TAILS {
        let mut out = vec![BTreeSet::new(); groups];
        for member in modules.iter() {
            out[member.group].insert(member.name.to_owned());
        }
        return out.into_iter().map(|set| set.into_iter().collect()).collect();
    }
    let patterns: Vec<&String> = tails.keys().collect();
    let mut out = vec![BTreeSet::new(); groups];
    let mut stacks = Stacks::of(modules);
    for (pattern, tail) in &tails {
        if tail.groups.len() == 1 {
            let group = tail.members[0].group;
            let foreign = |shorter: &str| {
                patterns
                    .iter()
                    .any(|other| ends_with_segments(other, shorter) && tails[*other].groups != tail.groups)
            };
            out[group].insert(format!(r"re:(.*\.)?{}$", shortest_tail(pattern, foreign)));
            continue;
        }
        for (list, members) in tail.lists() {
            for (group, entry) in of_list(list, pattern, &members, modules, &mut stacks) {
                out[group].insert(entry);
            }
        }
    }
    out.into_iter().map(|set| set.into_iter().collect()).collect()
}

/// More names below layers than any model has: of such a model every module is named.
const MAX_TAILS: usize = 4096;

/// The modules that are quantized, with the group that each is in.
#[derive(Clone, Copy)]
pub(crate) struct Modules<'a, 'g> {
    pub all: &'a [QuantizedModule<'a>],
    pub group_of: &'g dyn Fn(&QuantizedModule<'_>) -> usize,
}

impl<'a> Modules<'a, '_> {
    fn iter(&self) -> impl Iterator<Item = Member<'a>> {
        self.all.iter().map(|module| Member { name: module.name, group: (self.group_of)(module) })
    }

    /// The names of those of all groups but one.
    fn others(&self, group: usize) -> impl Iterator<Item = &'a str> {
        self.iter().filter(move |member| member.group != group).map(|member| member.name)
    }
}

/// A quantized module.
#[derive(Clone, Copy)]
struct Member<'a> {
    name: &'a str,
    group: usize,
}

impl<'a> Member<'a> {
    fn cut(&self) -> Option<Cut<'a>> {
        Cut::at_layer(self.name)
    }
}

/// Modules with the same name below their layer.
#[derive(Default)]
struct Tail<'a> {
    groups: BTreeSet<usize>,
    members: Vec<Member<'a>>,
}

impl<'a> Tail<'a> {
    /// The members by the word for their list of layers.
    fn lists(&self) -> BTreeMap<Option<&'a str>, Vec<Member<'a>>> {
        let mut lists: BTreeMap<Option<&str>, Vec<Member<'_>>> = BTreeMap::new();
        for member in &self.members {
            lists.entry(member.cut().map(|cut| cut.list)).or_default().push(*member);
        }
        lists
    }
}

/// Lists of layers by what comes before them and their word.
struct Stacks<'a>(BTreeMap<(&'a str, &'a str), Stack>);

/// One list of layers.
struct Stack {
    /// The group that all of its modules are in. None if they are in several groups.
    group: Option<usize>,
    /// The entry for all of it, if there is one, once it was asked for.
    entry: Option<Option<String>>,
}

impl<'a> Stacks<'a> {
    fn of(modules: Modules<'a, '_>) -> Self {
        let mut stacks = BTreeMap::new();
        for Member { name, group } in modules.iter() {
            let Some(cut) = Cut::at_layer(name) else { continue };
            let new = Stack { group: Some(group), entry: None };
            let stack = stacks.entry((cut.prefix, cut.list)).or_insert(new);
            if stack.group != Some(group) {
                stack.group = None;
            }
        }
        Self(stacks)
    }

    /// An entry for the whole list that a module is in, if all of the list is in one group and a pattern can express
    /// that.
    fn entry(&mut self, cut: &Cut<'a>, modules: Modules<'_, '_>) -> Option<String> {
        let stack = self.0.get_mut(&(cut.prefix, cut.list))?;
        let group = stack.group?;
        let made = stack.entry.get_or_insert_with(|| {
            in_list(cut, None, ".*", &|pattern| hits_any(pattern, modules.others(group)))
        });
        made.clone()
    }
}

/// Entries for modules of several groups that have the same name below their layers, in lists of the same name. They
/// are told apart by layer if possible, else by the part before the list, else each by its full name.
fn of_list<'a>(
    list: Option<&'a str>,
    tail: &str,
    members: &[Member<'a>],
    modules: Modules<'a, '_>,
    stacks: &mut Stacks<'a>,
) -> Vec<(usize, String)> {
    let by_name = |member: &Member<'_>| (member.group, member.name.to_owned());
    let Some(list) = list else { return members.iter().map(by_name).collect() };
    let mut numbers: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    let mut group_of: BTreeMap<&str, usize> = BTreeMap::new();
    let mut is_told_by_layer = true;
    for member in members {
        let Some(cut) = member.cut() else { continue };
        numbers.entry(member.group).or_default().push(cut.number);
        is_told_by_layer &= *group_of.entry(cut.number).or_insert(member.group) == member.group;
    }
    if is_told_by_layer {
        let entry = |numbers: &[&str]| format!("re:{}", layers_pattern(list, numbers, tail));
        return numbers.iter().map(|(group, numbers)| (*group, entry(numbers))).collect();
    }
    let mut out = Vec::new();
    let mut parts: BTreeMap<(&str, usize), Vec<&Member<'_>>> = BTreeMap::new();
    for member in members {
        parts.entry((member.cut().map_or("", |cut| cut.prefix), member.group)).or_default().push(member);
    }
    for ((_, group), members) in parts {
        let Some(cut) = members[0].cut() else { continue };
        let numbers: Vec<&str> = members.iter().filter_map(|member| Some(member.cut()?.number)).collect();
        let whole = stacks.entry(&cut, modules);
        let entry = whole.or_else(|| {
            let hits = |pattern: &str| hits_any(pattern, modules.others(group));
            in_list(&cut, Some(&numbers), &format!("{tail}$"), &hits)
        });
        match entry {
            Some(entry) => out.push((group, format!("re:{entry}"))),
            None => out.extend(members.into_iter().map(by_name)),
        }
    }
    out
}

/// Targets for quantized output heads: vLLM's class of them is no `Linear`, so they are named.
fn heads(modules: Modules<'_, '_>) -> BTreeSet<String> {
    let Ok(head) = Regex::new(&format!(r"^(.*\.)?({})$", HEADS.join("|"))) else { return BTreeSet::new() };
    let is_head = |name: &&str| Cut::at_layer(name).is_none() && head.is_match(name);
    let heads = modules.iter().map(|member| member.name).filter(is_head);
    heads
        .map(|name| format!(r"re:(.*\.)?{}$", escape_tail(name.rsplit('.').next().unwrap_or(name))))
        .collect()
}

fn ends_with_segments(pattern: &str, tail: &str) -> bool {
    pattern.strip_suffix(tail).is_some_and(|head| head.is_empty() || head.ends_with(r"\."))
}

/// The last segments of an escaped name, as few as are not `foreign`; `experts` stays in, because transformers looks for it.
fn shortest_tail(pattern: &str, foreign: impl Fn(&str) -> bool) -> &str {
    let mut starts: Vec<usize> = pattern.match_indices(r"\.").map(|(at, _)| at + 2).collect();
    starts.reverse();
    let has_experts = pattern.split(r"\.").any(|segment| segment == "experts");
    for start in starts {
        let tail = &pattern[start..];
        if !foreign(tail) && (!has_experts || tail.split(r"\.").any(|segment| segment == "experts")) {
            return tail;
        }
    }
    pattern
}
