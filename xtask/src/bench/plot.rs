//! Pictures as SVG. They lie in the documentation, whose background is white for one reader and nearly black for another: so they
//! have none of their own, and only colours that can be told from both.

use std::ops::Range;

use anyhow::Result;
use plotters::{
    chart::{ChartBuilder, SeriesLabelPosition},
    coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter},
    drawing::IntoDrawingArea as _,
    element::PathElement,
    prelude::SVGBackend,
    series::LineSeries,
    style::{Color as _, IntoFont as _, RGBColor, ShapeStyle, TRANSPARENT},
};

use super::{
    picture::{Of, Picture, Scale},
    table::number,
};

const SIZE: (u32, u32) = (720, 400);

/// Text and axes.
const INK: RGBColor = RGBColor(118, 124, 132);

fn colour(of: Of) -> RGBColor {
    match of {
        Of::Agent => RGBColor(31, 111, 235),
        Of::Nginx => RGBColor(200, 100, 20),
        Of::Goal => RGBColor(46, 140, 70),
    }
}

/// Draws `picture`.
pub fn svg(picture: &Picture) -> Result<String> {
    let mut text = String::new();
    draw(picture, &mut text)?;
    // What reads pictures aloud begins with this.
    Ok(text.replacen('>', &format!(">\n<title>{}</title>", picture.title), 1))
}

fn draw(picture: &Picture, text: &mut String) -> Result<()> {
    let points = || picture.lines.iter().flat_map(|line| &line.points).copied();
    let x = Ruler::new(picture.x.scale, points().map(|(x, _)| x));
    let y = Ruler::new(picture.y.scale, points().map(|(_, y)| y));
    let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
    let font = |points: f64| ("sans-serif", points).into_font().color(&INK);
    let mut chart = ChartBuilder::on(&area)
        .caption(&picture.title, font(22.0))
        .margin(12)
        .margin_right(36)
        .x_label_area_size(46)
        .y_label_area_size(92)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .axis_style(INK)
        .bold_line_style(INK.mix(0.3))
        .light_line_style(TRANSPARENT)
        .label_style(font(17.0))
        .axis_desc_style(font(18.0))
        .x_desc(picture.x.label)
        .y_desc(picture.y.label)
        .draw()?;
    for line in &picture.lines {
        // A goal was not measured anywhere.
        let (width, dot) = if line.of == Of::Goal { (1, 0) } else { (2, 2) };
        let style = ShapeStyle::from(colour(line.of)).stroke_width(width).filled();
        chart
            .draw_series(LineSeries::new(line.points.clone(), style).point_size(dot))?
            .label(line.of.name())
            .legend(move |(left, middle)| PathElement::new([(left, middle), (left + 22, middle)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .legend_area_size(28)
        .margin(12)
        .background_style(TRANSPARENT)
        .border_style(TRANSPARENT)
        .label_font(font(18.0))
        .draw()?;
    area.present()?;
    Ok(())
}

/// Where values are along an axis, and which of them are marked.
struct Ruler {
    scale: Scale,
    /// From the axis's begin to its end.
    marks: Vec<f64>,
}

/// One, two and five times every power of ten that is measured here.
fn round_numbers() -> impl Iterator<Item = f64> {
    (-3..9).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power)))
}

impl Ruler {
    /// That has all `values` on it.
    fn new(scale: Scale, values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<_> = values.collect();
        values.sort_unstable_by(f64::total_cmp);
        values.dedup();
        let least = values.first().copied().unwrap_or(1.0);
        let most = values.last().copied().unwrap_or(least);
        let marks = match scale {
            Scale::Linear => {
                let step = round_numbers().find(|step| step * 5.0 >= most).unwrap_or(most);
                (0_u8..=5).map(|steps| step * f64::from(steps)).collect()
            }
            Scale::Logarithmic => {
                let begin = round_numbers().filter(|mark| *mark <= least).last();
                let end = round_numbers().find(|mark| *mark >= most && *mark > least);
                let (begin, end) = (begin.unwrap_or(least), end.unwrap_or(most));
                round_numbers()
                    .filter(|mark| (begin..=end).contains(mark))
                    .collect()
            }
            Scale::LogarithmicAtPoints => values,
            Scale::Nines => [0.0, 0.9, 0.99, 0.999, 0.9999]
                .into_iter()
                // Not so close to the end that two labels meet.
                .filter(|mark| (1.0 - mark) > (1.0 - most) * 1.5)
                .chain([most])
                .collect(),
        };
        Self { scale, marks }
    }

    fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => value,
            Scale::Logarithmic | Scale::LogarithmicAtPoints => value.log10(),
            Scale::Nines => -(1.0 - value).log10(),
        }
    }
}

impl Ranged for Ruler {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn range(&self) -> Range<f64> {
        let end = |mark: Option<&f64>| mark.copied().unwrap_or_default();
        end(self.marks.first())..end(self.marks.last())
    }

    fn map(&self, value: &f64, (begin, end): (i32, i32)) -> i32 {
        let Range { start, end: last } = self.range();
        let length = self.place(last) - self.place(start);
        let share = (self.place(*value) - self.place(start)) / length;
        #[expect(clippy::cast_possible_truncation, reason = "a place between two others")]
        let offset = (share * f64::from(end - begin)).round() as i32;
        begin + offset
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.marks.clone()
    }
}

impl ValueFormatter<f64> for Ruler {
    fn format(value: &f64) -> String {
        number(*value)
    }

    fn format_ext(&self, value: &f64) -> String {
        match self.scale {
            Scale::Nines => format!("{} %", number((value * 1e5).round() / 1e3)),
            _ => Self::format(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::picture::{Axis, Line};

    fn picture(lines: Vec<Line>) -> Picture {
        Picture {
            name: "test",
            title: "What is tested".to_owned(),
            x: Axis {
                label: "share of all",
                scale: Scale::Nines,
            },
            y: Axis {
                label: "latency in µs",
                scale: Scale::Logarithmic,
            },
            lines,
        }
    }

    #[test]
    fn a_picture_says_what_it_shows_of_whom() -> Result<()> {
        let line = |of, factor: f64| Line {
            of,
            points: [0.0, 0.9, 0.99, 0.999]
                .map(|share| (share, factor / (1.0 - share)))
                .to_vec(),
        };
        let svg = svg(&picture(vec![
            line(Of::Agent, 3.0),
            line(Of::Nginx, 7.0),
            line(Of::Goal, 2.0),
        ]))?;
        for text in [
            "What is tested",
            "share of all",
            "latency in µs",
            "imds-agent",
            "nginx",
            "goal",
            "99.9 %",
            "2,000",
        ] {
            assert!(svg.contains(text), "no {text} in {svg}");
        }
        for of in [Of::Agent, Of::Nginx, Of::Goal] {
            let RGBColor(red, green, blue) = colour(of);
            let stroke = format!("stroke=\"#{red:02X}{green:02X}{blue:02X}\"");
            let drawn = svg
                .lines()
                .filter(|line| line.starts_with("<polyline") && line.contains(&stroke));
            // The line itself, and its like in the legend.
            assert_eq!(drawn.count(), 2, "{of:?} in {svg}");
        }
        assert!(svg.len() < 20_000, "{} bytes", svg.len());
        Ok(())
    }

    #[test]
    fn marks_are_round_and_hold_all_values() {
        let marks = |scale, values: &[f64]| {
            let ruler = Ruler::new(scale, values.iter().copied());
            let labels: Vec<_> = ruler.marks.iter().map(|mark| ruler.format_ext(mark)).collect();
            labels.join(" ")
        };
        assert_eq!(marks(Scale::Linear, &[3.0, 41.0]), "0 10 20 30 40 50");
        assert_eq!(marks(Scale::Logarithmic, &[3.7, 41.0]), "2 5 10 20 50");
        assert_eq!(marks(Scale::Logarithmic, &[0.03, 0.3]), "0.02 0.05 0.1 0.2 0.5");
        assert_eq!(
            marks(Scale::LogarithmicAtPoints, &[1.0, 4.0, 4096.0]),
            "1 4 4,096"
        );
        assert_eq!(marks(Scale::Nines, &[0.0, 0.99]), "0 % 90 % 99 %");
    }

    /// WCAG 2.1 asks for 3 to 1 in graphics, and 4.5 to 1 in small text; no grey has that on white and black alike.
    #[test]
    fn every_colour_can_be_told_from_either_background() {
        let luminance = |RGBColor(red, green, blue): RGBColor| {
            let linear = |byte: u8| {
                let share = f64::from(byte) / 255.0;
                if share <= 0.040_45 {
                    share / 12.92
                } else {
                    ((share + 0.055) / 1.055).powf(2.4)
                }
            };
            0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue)
        };
        let contrast = |one, other| {
            let (one, other) = (luminance(one) + 0.05, luminance(other) + 0.05);
            f64::max(one / other, other / one)
        };
        for background in [RGBColor(255, 255, 255), RGBColor(13, 17, 23)] {
            for of in [Of::Agent, Of::Nginx, Of::Goal] {
                assert!(contrast(colour(of), background) > 3.5, "{of:?}");
            }
            assert!(contrast(INK, background) > 4.0);
        }
    }
}
