package device

import (
	"fmt"
	"time"
)

const (
	// MaxPeriods bounds a schedule.
	MaxPeriods = 50
	// scheduleAhead is more than the 30 hours for which a schedule is wanted by the
	// hour that it is made for: those made within one hour are the same.
	scheduleAhead = 31 * time.Hour
	// scheduleBehind is for players whose clock is behind.
	scheduleBehind = time.Hour
)

// Period is a time in which a device shows something, from From to before Until. Its
// JSON is what players get.
type Period struct {
	From  time.Time `json:"from"`
	Until time.Time `json:"until"`
	// Loop are the places in the playlist of what is shown, over and over.
	Loop []int `json:"loop"`
}

// schedule writes out when a device is on, so that its player needs no time zones: in
// order and apart from each other, for the next 30 hours at least.
func schedule(zone string, hours []Opening, loop []int, now time.Time) ([]Period, error) {
	hour := now.UTC().Truncate(time.Hour)
	end := hour.Add(scheduleAhead)
	if len(hours) == 0 {
		return []Period{{From: hour.Add(-scheduleBehind), Until: end, Loop: loop}}, nil
	}
	location, err := time.LoadLocation(zone)
	if err != nil {
		return nil, fmt.Errorf("writing a schedule: %w", err)
	}
	periods := []Period{}
	// What is open over midnight is two openings, so that the first may be of a day
	// before.
	year, month, day := hour.In(location).Date()
	for midnight := time.Date(year, month, day-1, 0, 0, 0, 0, time.UTC); midnight.Before(end.Add(minutesOfDay * time.Minute)); midnight = midnight.AddDate(0, 0, 1) {
		for _, h := range hours {
			if h.Weekday%7 != int(midnight.Weekday()) {
				continue
			}
			from := instant(midnight.Add(time.Duration(h.Open)*time.Minute), location, false)
			until := instant(midnight.Add(time.Duration(h.Close)*time.Minute), location, true)
			if until.After(end) {
				until = end
			}
			last := len(periods) - 1
			switch {
			case !from.Before(until): // the clocks skip all of it, or it is too far ahead
			case last >= 0 && !from.After(periods[last].Until):
				if until.After(periods[last].Until) {
					periods[last].Until = until
				}
			default:
				periods = append(periods, Period{From: from, Until: until, Loop: loop})
			}
		}
	}
	for len(periods) > 0 && !periods[0].Until.After(hour) {
		periods = periods[1:]
	}
	return periods[:min(len(periods), MaxPeriods)], nil
}

// instant is when the clocks of a zone show wall, which is written as if they showed
// UTC: the first time, or the last when they show it twice. What they skip is the
// moment at which they do.
func instant(wall time.Time, zone *time.Location, last bool) time.Time {
	const day = 24 * time.Hour
	offset := func(t time.Time) time.Duration {
		_, seconds := t.In(zone).Zone()
		return time.Duration(seconds) * time.Second
	}
	before, after := wall.Add(-offset(wall.Add(-day))), wall.Add(-offset(wall.Add(day)))
	shows := func(t time.Time) bool { return t.Add(offset(t)).Equal(wall) }
	switch {
	case shows(after) && (last || !shows(before)):
		return after
	case shows(before):
		return before
	default:
		skipped, _ := before.In(zone).ZoneBounds()
		return skipped.UTC()
	}
}
