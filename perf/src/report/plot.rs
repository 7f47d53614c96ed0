//! Plots of a report, as SVG that stands inside its page.

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::Failure;
use crate::compare::result::Kind;
use crate::statistics::Spread;

const WIDTH: u32 = 860;
const BAR_HEIGHT: u32 = 26;
const MARGIN_HEIGHT: u32 = 74;
/// Room for the names of topologies.
const LABEL_WIDTH: i32 = 190;
/// Room for the figure behind a bar, as a share of the greatest.
const HEADROOM: f64 = 1.18;

/// One topology's figure.
pub(super) struct Bar<'a> {
    pub(super) label: &'a str,
    pub(super) kind: Kind,
    pub(super) spread: Spread,
}

/// One topology's latencies: what share of requests took at most how long.
pub(super) struct Curve<'a> {
    pub(super) label: &'a str,
    pub(super) kind: Kind,
    /// Median over the rounds, in the order of the names that the plot was given.
    pub(super) values: Vec<f64>,
}

/// The colour that says whose a figure is; the same in all plots and in the page's legend.
pub(super) fn colour(kind: Kind) -> RGBColor {
    match kind {
        Kind::Floor => RGBColor(0x8a, 0x93, 0x9e),
        Kind::Ours => RGBColor(0x0b, 0x7a, 0x75),
        Kind::Peer => RGBColor(0xd9, 0x77, 0x06),
        Kind::Custom => RGBColor(0x7c, 0x3a, 0xed),
    }
}

/// Horizontal bars of the medians, each with a line from the least to the greatest round.
pub(super) fn bars(unit: &str, bars: &[Bar<'_>]) -> Result<String, Failure> {
    let height = MARGIN_HEIGHT + BAR_HEIGHT * u32::try_from(bars.len())?;
    let most = bars.iter().map(|bar| bar.spread.max).fold(f64::MIN_POSITIVE, f64::max) * HEADROOM;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        draw_bars(&area, unit, bars, most)?;
        area.present()?;
    }
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw_bars(area: &Area<'_>, unit: &str, bars: &[Bar<'_>], most: f64) -> Result<(), Failure> {
    let rows = i32::try_from(bars.len())?;
    let names: Vec<&str> = bars.iter().map(|bar| bar.label).collect();
    let mut chart = ChartBuilder::on(area)
        .margin_right(24)
        .margin_top(6)
        .x_label_area_size(44)
        .y_label_area_size(LABEL_WIDTH)
        .build_cartesian_2d(0.0..most, (0..rows - 1).into_segmented())?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc(unit)
        .y_labels(bars.len())
        .x_label_formatter(&|value| shown(*value))
        .label_style(("sans-serif", 13))
        .y_label_formatter(&|row| match row {
            // The first topology stands at the top.
            SegmentValue::CenterOf(row) => from_the_top(&names, *row).to_owned(),
            _ => String::new(),
        })
        .draw()?;
    for (row, bar) in bars.iter().rev().enumerate() {
        let row = i32::try_from(row)?;
        let Spread { min, median, max } = bar.spread;
        let (low, high) = (SegmentValue::Exact(row), SegmentValue::Exact(row + 1));
        let mut body = Rectangle::new([(0.0, low), (median, high)], colour(bar.kind).filled());
        body.set_margin(5, 5, 0, 0);
        chart.draw_series([body])?;
        let middle = SegmentValue::CenterOf(row);
        chart.draw_series([PathElement::new([(min, middle.clone()), (max, middle.clone())], BLACK)])?;
        let text = format!("  {}", shown(median));
        let style = ("sans-serif", 13).into_font();
        chart.draw_series([EmptyElement::at((max, middle)) + Text::new(text, (4, -7), style)])?;
    }
    Ok(())
}

fn from_the_top<'a>(names: &[&'a str], row: i32) -> &'a str {
    let row = usize::try_from(row).unwrap_or(usize::MAX);
    names.len().checked_sub(row.saturating_add(1)).and_then(|at| names.get(at)).copied().unwrap_or_default()
}

/// Latency over its percentiles, on a logarithmic scale.
pub(super) fn curves(unit: &str, names: &[&str], curves: &[Curve<'_>]) -> Result<String, Failure> {
    let values = || curves.iter().flat_map(|curve| curve.values.iter().copied());
    let least = values().fold(f64::MAX, f64::min).max(1.0) * 0.8;
    let most = values().fold(1.0, f64::max) * 1.3;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, 420)).into_drawing_area();
        let columns = i32::try_from(names.len())?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(34)
            .y_label_area_size(70)
            .build_cartesian_2d((0..columns - 1).into_segmented(), (least..most).log_scale())?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .y_desc(unit)
            .label_style(("sans-serif", 13))
            .x_label_formatter(&|column| match column {
                SegmentValue::CenterOf(column) => usize::try_from(*column)
                    .ok()
                    .and_then(|at| names.get(at))
                    .copied()
                    .unwrap_or_default()
                    .to_owned(),
                _ => String::new(),
            })
            .y_label_formatter(&|value| shown(*value))
            .draw()?;
        for (number, curve) in curves.iter().enumerate() {
            let line = shade(curve.kind, number).stroke_width(2);
            let points = (0..columns).map(SegmentValue::CenterOf).zip(curve.values.iter().copied());
            chart
                .draw_series(LineSeries::new(points, line).point_size(3))?
                .label(curve.label)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], line));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .label_font(("sans-serif", 12))
            .background_style(WHITE.mix(0.85))
            .draw()?;
        area.present()?;
    }
    Ok(svg)
}

/// Curves of one kind are told apart by how dark they are.
fn shade(kind: Kind, number: usize) -> RGBColor {
    let RGBColor(red, green, blue) = colour(kind);
    let darker = |part: u8| u8::try_from(u32::from(part) * [10, 7, 5][number % 3] / 10).unwrap_or(part);
    RGBColor(darker(red), darker(green), darker(blue))
}

/// Three digits that count.
pub(super) fn shown(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 => format!("{:.2} M", value / 1e6),
        size if size >= 1e4 => format!("{:.1} k", value / 1e3),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_topology_stands_at_the_top() {
        let spread = Spread { min: 1.0, median: 2.0, max: 3.0 };
        let bar = |label| Bar { label, kind: Kind::Ours, spread };
        let svg = bars("us", &[bar("upper<1>"), bar("lower")]).unwrap();
        let height = |label: &str| {
            let (before, _) = svg.split_once(label).expect(label);
            let (_, y) = before.rsplit_once(" y=\"").unwrap();
            y.split('"').next().unwrap().parse::<i32>().unwrap()
        };
        assert!(height("upper") < height("lower"), "{svg}");
        assert!(!svg.contains("upper<1>"), "text is escaped");
    }

    #[test]
    fn figures_are_short() {
        let texts = [0.5, 12.34, 123.4, 12_345.0, 2_500_000.0].map(shown);
        assert_eq!(texts, ["0.50", "12.3", "123", "12.3 k", "2.50 M"]);
    }
}
