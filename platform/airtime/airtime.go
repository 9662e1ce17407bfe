// Package airtime says when displays are on and when booked lines are, in moments,
// from clocks on walls: opening hours, flights and dayparts in a display's time zone.
package airtime

import (
	"fmt"
	"slices"
	"time"
)

// MinutesOfDay is where the last daypart of a day ends.
const MinutesOfDay = 24 * 60

// Opening is a time of one weekday: from minute Open to before minute Close since
// midnight by the clock on the wall. Opening hours and dayparts are lists of them.
type Opening struct {
	Weekday int `json:"weekday"` // 1 (Monday) to 7, as ISO 8601
	Open    int `json:"open"`
	Close   int `json:"close"`
}

// Sorted returns a copy of openings in the order of the week.
func Sorted(list []Opening) []Opening {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b Opening) int {
		return (a.Weekday-b.Weekday)*MinutesOfDay + a.Open - b.Open
	})
	return list
}

// Check says in words what is wrong with openings: those of one weekday that
// overlap, and one that is not a time of a weekday.
func Check(list []Opening) error {
	sorted := Sorted(list)
	for n, o := range sorted {
		switch {
		case o.Weekday < 1 || o.Weekday > 7:
			return fmt.Errorf("weekday %d is none: they are 1 (Monday) to 7", o.Weekday)
		case o.Open < 0 || o.Close <= o.Open || o.Close > MinutesOfDay:
			return fmt.Errorf("from minute %d to %d is no time of a day: it begins at 0 or later, ends after it begins, and at %d or before", o.Open, o.Close, MinutesOfDay)
		case n > 0 && sorted[n-1].Weekday == o.Weekday && sorted[n-1].Close > o.Open:
			return fmt.Errorf("two of weekday %d overlap: one ends at minute %d, another begins at %d", o.Weekday, sorted[n-1].Close, o.Open)
		}
	}
	return nil
}

// Date is a day of the calendar.
type Date struct {
	Year  int
	Month time.Month
	Day   int
}

// ParseDate reads a date as 2006-01-02.
func ParseDate(text string) (Date, error) {
	t, err := time.Parse(time.DateOnly, text)
	if err != nil {
		return Date{}, fmt.Errorf("reading a date, which is written as 2006-01-02: %w", err)
	}
	return DateOf(t, time.UTC), nil
}

// DateOf is the date that calendars in a zone show at a moment.
func DateOf(t time.Time, zone *time.Location) Date {
	year, month, day := t.In(zone).Date()
	return Date{Year: year, Month: month, Day: day}
}

// String is the date as 2006-01-02, which ParseDate reads.
func (d Date) String() string { return d.Midnight().Format(time.DateOnly) }

// Midnight is when the date begins in UTC.
func (d Date) Midnight() time.Time {
	return time.Date(d.Year, d.Month, d.Day, 0, 0, 0, 0, time.UTC)
}

// Add is the date so many days later; days may be negative.
func (d Date) Add(days int) Date {
	return DateOf(d.Midnight().AddDate(0, 0, days), time.UTC)
}

// Compare is negative when the date is before another, positive when after, else 0.
func (d Date) Compare(other Date) int { return d.Midnight().Compare(other.Midnight()) }

// Flight is from the first to the last day, by the calendar at the display.
type Flight struct {
	First, Last Date
}

// Days is how many days a flight has; one that ends before it begins has none.
func (f Flight) Days() int {
	const day = 24 * time.Hour
	return max(0, int(f.Last.Midnight().Sub(f.First.Midnight())/day)+1)
}

// Range is from a moment to before another, both in UTC.
type Range struct {
	From, Until time.Time
}

// Times is when a line is on: in the flight, in its dayparts (without any in all of
// it), while the display is open (without any hours always). The ranges are in
// order and apart from each other. A moment is in one exactly when the clock on the
// wall shows a time that is: a time that the clock skips does not exist, and one
// that it shows twice is on twice. So what is apart on the wall is apart here. The
// openings have passed Check.
func Times(zone *time.Location, flight Flight, dayparts, hours []Opening) []Range {
	if flight.Days() == 0 {
		return nil
	}
	week := weekOf(dayparts, hours)
	var ranges []Range
	add := func(from, until time.Time) {
		if !from.Before(until) {
			return
		}
		if last := len(ranges) - 1; last >= 0 && ranges[last].Until.Equal(from) {
			ranges[last].Until = until
			return
		}
		ranges = append(ranges, Range{From: from, Until: until})
	}
	// The clock is written as if it showed UTC. It is no more than a day from UTC, and
	// goes evenly between two moments at which it is set.
	const day = 24 * time.Hour
	opens, closes := flight.First.Midnight(), flight.Last.Midnight().Add(day)
	end := closes.Add(day)
	for set := opens.Add(-day); set.Before(end); {
		_, seconds := set.In(zone).Zone()
		offset := time.Duration(seconds) * time.Second
		_, next := set.In(zone).ZoneBounds()
		if next.IsZero() || next.After(end) {
			next = end
		}
		next = next.UTC()
		from, until := later(opens, set.Add(offset)), earlier(closes, next.Add(offset))
		for midnight := from.Truncate(day); midnight.Before(until); midnight = midnight.Add(day) {
			for _, s := range week[midnight.Weekday()] {
				add(later(midnight.Add(s.from), from).Add(-offset), earlier(midnight.Add(s.until), until).Add(-offset))
			}
		}
		set = next
	}
	return ranges
}

// span is a time of a day, since midnight on the wall.
type span struct{ from, until time.Duration }

// weekOf is what is in both lists, by weekday.
func weekOf(dayparts, hours []Opening) (week [7][]span) {
	parts, open := daysOf(dayparts), daysOf(hours)
	for day := range week {
		for _, a := range parts[day] {
			for _, b := range open[day] {
				if s := (span{max(a.from, b.from), min(a.until, b.until)}); s.from < s.until {
					week[day] = append(week[day], s)
				}
			}
		}
	}
	return week
}

// daysOf is a list by weekday; without any, all days are whole.
func daysOf(list []Opening) (days [7][]span) {
	if len(list) == 0 {
		for day := range days {
			days[day] = []span{{0, MinutesOfDay * time.Minute}}
		}
		return days
	}
	for _, o := range Sorted(list) {
		day := time.Weekday(o.Weekday % 7)
		days[day] = append(days[day], span{time.Duration(o.Open) * time.Minute, time.Duration(o.Close) * time.Minute})
	}
	return days
}

// Cut is what of ranges is from a moment to before another.
func Cut(ranges []Range, from, until time.Time) []Range {
	var kept []Range
	for _, r := range ranges {
		r = Range{From: later(r.From, from.UTC()), Until: earlier(r.Until, until.UTC())}
		if r.From.Before(r.Until) {
			kept = append(kept, r)
		}
	}
	return kept
}

// Total is how long ranges last together.
func Total(ranges []Range) time.Duration {
	var total time.Duration
	for _, r := range ranges {
		total += r.Until.Sub(r.From)
	}
	return total
}

// Overlap says whether a moment is in both; each is in order and its ranges apart.
func Overlap(a, b []Range) bool {
	for len(a) > 0 && len(b) > 0 {
		switch {
		case !a[0].Until.After(b[0].From):
			a = a[1:]
		case !b[0].Until.After(a[0].From):
			b = b[1:]
		default:
			return true
		}
	}
	return false
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
