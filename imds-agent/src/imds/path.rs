//! A request target into a version and path segments.
//!
//! Empty segments do not count, so `//` is `/` and a slash at the end is nothing: clients send both and expect the same
//! answer (wire contract, section 1, facts 5 and 14). `.` and `..` are names like others, which nothing in the tree
//! has, so they find nothing and climb nowhere. Nothing is copied.

/// Every version that `GET /` lists, oldest first, in the order and number of a capture made on EC2 in August 2024.
/// As text they sort by age, `latest` included.
pub const VERSIONS: [&str; 30] = [
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
    "2011-01-01",
    "2011-05-01",
    "2012-01-12",
    "2014-02-25",
    "2014-11-05",
    "2015-10-20",
    "2016-04-19",
    "2016-06-30",
    "2016-09-02",
    "2018-03-28",
    "2018-08-17",
    "2018-09-24",
    "2019-10-01",
    "2020-10-27",
    "2021-01-03",
    "2021-03-23",
    "2021-07-15",
    "2022-07-09",
    "2022-09-24",
    "2024-04-11",
    LATEST,
];

/// The name of whatever version is newest.
pub const LATEST: &str = "latest";

/// A version that exists.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ApiVersion(&'static str);

impl ApiVersion {
    /// The version called `name`, if it exists: a date that no version has is not a version.
    pub fn named(name: &str) -> Option<Self> {
        let index = VERSIONS.binary_search(&name).ok()?;
        VERSIONS.get(index).copied().map(Self)
    }

    /// Whether a category that came `first` with that date is in this version. The documentation dates some categories
    /// by days that no version has; they are in every later one.
    pub fn has(self, first: &str) -> bool {
        first <= self.0
    }
}

/// The path of a request target: no scheme, no authority, no query.
#[derive(Clone, Copy, Debug)]
pub struct Path<'a>(&'a str);

impl<'a> Path<'a> {
    /// The path of `target`, in origin form (`/latest/`) or absolute form (`http://169.254.169.254/latest/`). Any
    /// other form has no path, and nothing is found there.
    pub fn of(target: &'a str) -> Option<Self> {
        let target = target.split_once('?').map_or(target, |(path, _query)| path);
        if target.starts_with('/') {
            return Some(Self(target));
        }
        let (scheme, rest) = target.split_once("://")?;
        if !scheme.eq_ignore_ascii_case("http") {
            return None;
        }
        let path_start = rest.find('/').unwrap_or(rest.len());
        rest.get(path_start..).map(Self)
    }

    /// The segments that count, in order.
    pub fn segments(self) -> impl Iterator<Item = &'a str> + Clone {
        self.0.split('/').filter(|segment| !segment.is_empty())
    }

    /// Whether the path ends in a slash.
    pub fn ends_in_slash(self) -> bool {
        self.0.ends_with('/')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(target: &str) -> Option<Vec<&str>> {
        Path::of(target).map(|path| path.segments().collect())
    }

    #[test]
    fn targets_to_segments() {
        for (target, expected) in [
            ("/", Some(vec![])),
            ("/latest", Some(vec!["latest"])),
            ("/latest//meta-data/", Some(vec!["latest", "meta-data"])),
            ("//latest", Some(vec!["latest"])),
            ("/latest/../user-data", Some(vec!["latest", "..", "user-data"])),
            ("/latest?a=/b", Some(vec!["latest"])),
            ("http://169.254.169.254/latest/x", Some(vec!["latest", "x"])),
            ("HTTP://host:80", Some(vec![])),
            ("http://host?x", Some(vec![])),
            ("https://host/latest", None),
            ("*", None),
            ("latest", None),
            ("host:80", None),
            ("", None),
        ] {
            assert_eq!(segments(target), expected, "{target:?}");
        }
    }

    #[test]
    fn versions_sort_by_age() {
        assert!(VERSIONS.is_sorted());
        let version = |name| ApiVersion::named(name).unwrap();
        assert!(version("1.0").has("1.0"));
        assert!(!version("1.0").has("2007-01-19"));
        assert!(version("2020-10-27").has("2020-08-24"));
        assert!(!version("2019-10-01").has("2020-08-24"));
        assert!(version("latest").has("2024-04-11"));
        assert_eq!(ApiVersion::named("2020-01-01"), None);
        assert_eq!(ApiVersion::named("Latest"), None);
    }
}
