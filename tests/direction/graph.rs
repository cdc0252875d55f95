//! The graph of units and of the arrows between them, and the circles in it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

/// The units that each unit uses, every arrow with one place that proves it.
#[derive(Default)]
pub struct Graph {
    arrows: BTreeMap<String, BTreeMap<String, String>>,
}

/// A circle of units, each of which uses the next and the last one the first, with the proof of
/// each arrow.
pub struct Circle {
    units: Vec<String>,
    proofs: Vec<String>,
}

impl Graph {
    pub fn add(&mut self, user: &str, used: &str, proof: &str) {
        let arrows = self.arrows.entry(user.to_owned()).or_default();
        arrows.entry(used.to_owned()).or_insert_with(|| proof.to_owned());
    }

    /// Returns the shortest circle through each arrow that closes one.
    pub fn circles(&self) -> Vec<Circle> {
        let mut seen = BTreeSet::new();
        let mut circles = Vec::new();
        for (user, arrows) in &self.arrows {
            for used in arrows.keys() {
                let Some(mut units) = self.way(used, user) else { continue };
                // A circle begins with its least name, wherever it was entered.
                let least = units.iter().enumerate().min_by_key(|(_, unit)| *unit);
                let least = least.map_or(0, |(index, _)| index);
                units.rotate_left(least);
                if seen.insert(units.clone()) {
                    let next = units.iter().cycle().skip(1);
                    let proofs = units.iter().zip(next).map(|(a, b)| self.arrows[a][b].clone());
                    circles.push(Circle { proofs: proofs.collect(), units });
                }
            }
        }
        circles
    }

    /// Returns the shortest way from one unit to another, both included, or `None` if there is
    /// none.
    fn way(&self, from: &str, to: &str) -> Option<Vec<String>> {
        let mut ways = VecDeque::from([vec![from.to_owned()]]);
        let mut reached = BTreeSet::from([from.to_owned()]);
        while let Some(way) = ways.pop_front() {
            let last = way.last()?;
            if last == to {
                return Some(way);
            }
            for next in self.arrows.get(last).into_iter().flat_map(BTreeMap::keys) {
                if reached.insert(next.clone()) {
                    ways.push_back([&way[..], std::slice::from_ref(next)].concat());
                }
            }
        }
        None
    }
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (user, arrows) in &self.arrows {
            let used: Vec<&str> = arrows.keys().map(String::as_str).collect();
            writeln!(f, "  {user} → {}", used.join(", "))?;
        }
        Ok(())
    }
}

impl Circle {
    pub fn route(&self) -> String {
        let first = self.units.first();
        let route: Vec<&str> = self.units.iter().chain(first).map(String::as_str).collect();
        route.join(" → ")
    }
}

impl fmt::Display for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.route())?;
        self.proofs.iter().try_for_each(|proof| writeln!(f, "  {proof}"))
    }
}
