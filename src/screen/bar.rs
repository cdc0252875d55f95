//! A bar of the card's memory. Each part has a pattern as well as a colour, so that neighbours can
//! be told apart even without colour.

use super::Screen;
use super::layout::Text;
use crate::model::Mb;
use anstyle::{AnsiColor, Style};

/// The pattern and the style that a segment of the bar is drawn with.
#[derive(Clone, Copy)]
pub struct Fill {
    style: Style,
    unicode: &'static str,
    ascii: &'static str,
}

const SERVICES: [(&str, &str); 5] = [("█", "#"), ("▓", "="), ("▒", "+"), ("▄", "%"), ("▚", "@")];
/// Colours of the services: neither red nor yellow, which would look like a warning. There are four
/// of them and five patterns, so that twenty services can be told apart.
const COLOURS: [AnsiColor; 4] =
    [AnsiColor::Green, AnsiColor::Magenta, AnsiColor::Cyan, AnsiColor::Blue];
/// Fill of memory in use that is not known to belong to a service.
pub const OTHERS: Fill = Fill { style: Style::new(), unicode: "░", ascii: "o" };
/// Fill of memory that the driver reports as neither used nor free.
pub const DRIVER: Fill = Fill { style: Style::new(), unicode: "┼", ascii: "d" };
/// Fill of free memory that is neither promised nor in the reserve.
pub const AVAILABLE: Fill = Fill { style: Style::new().dimmed(), unicode: "·", ascii: "." };
/// Fill of memory that is free but promised to running services.
pub const PROMISED: Fill = Fill { style: Style::new().dimmed(), unicode: "▁", ascii: "_" };
/// Fill of free memory that belongs to the reserve.
pub const RESERVE: Fill =
    Fill { style: AnsiColor::Yellow.on_default(), unicode: "╱", ascii: "/" };

impl Fill {
    /// Returns the fill of the service at this index of the configuration, whichever services are
    /// running.
    pub fn of_service(index: usize) -> Fill {
        let (unicode, ascii) = SERVICES[index % SERVICES.len()];
        let style = COLOURS[index % COLOURS.len()].on_default();
        Fill { style, unicode, ascii }
    }

    fn cells(&self, count: usize, screen: &Screen) -> Text {
        let sign = if screen.has_unicode { self.unicode } else { self.ascii };
        Text::styled(self.style, sign.repeat(count))
    }
}

/// A part of the card's memory: its name, its size, and how the bar shows it.
pub struct Part {
    pub name: String,
    pub size: Mb,
    pub fill: Fill,
}

impl Part {
    /// Returns the entry of the legend for this part, such as "█ comfyui 20000".
    pub fn legend(&self, screen: &Screen) -> Text {
        self.fill.cells(1, screen).then(format!(" {} {}", self.name, self.size.0))
    }
}

/// Draws the parts as a line over the width of the screen.
pub fn bar(parts: &[Part], screen: &Screen) -> String {
    let sizes: Vec<u64> = parts.iter().map(|part| part.size.0).collect();
    let cells = share(&sizes, screen.width);
    let drawn = parts.iter().zip(cells);
    drawn.map(|(part, count)| part.fill.cells(count, screen).on(screen)).collect::<String>() + "\n"
}

/// Shares all `cells` out in proportion to `sizes`. A size above 0 gets at least one cell, at the
/// cost of the largest share, as long as that has more than one.
fn share(sizes: &[u64], cells: usize) -> Vec<usize> {
    let total = u128::from(sizes.iter().sum::<u64>().max(1));
    let (mut sum, mut drawn) = (0, 0);
    let shared = sizes.iter().map(|size| {
        sum += u128::from(*size);
        let end = ((sum * cells as u128 + total / 2) / total) as usize;
        end - std::mem::replace(&mut drawn, end)
    });
    let mut shares: Vec<usize> = shared.collect();
    for index in 0..sizes.len() {
        let largest = shares.iter().copied().max().unwrap_or(0);
        if sizes[index] > 0 && shares[index] == 0 && largest > 1 {
            let donor = shares.iter().position(|share| *share == largest).unwrap_or(index);
            shares[donor] -= 1;
            shares[index] = 1;
        }
    }
    shares
}
