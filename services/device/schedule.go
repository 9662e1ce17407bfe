package device

import (
	"fmt"
	"slices"
	"time"

	"github.com/marquee-ads/marquee/platform/airtime"
)

const (
	// MaxPeriods bounds a schedule.
	MaxPeriods = 50
	// MaxSlots is how many slots a loop has at most: an hour of seconds.
	MaxSlots = 3600
	// scheduleAhead is more than the 30 hours for which a schedule is wanted by the
	// hour that it is made for: those made within one hour are the same.
	scheduleAhead = 31 * time.Hour
	// scheduleBehind is for players whose clock is behind.
	scheduleBehind = time.Hour
	// maxPlaces bounds a loop that is written out several times, so that all items of
	// the default playlist have their turn.
	maxPlaces = 1000
)

// Period is a time in which a device shows something, from From to before Until. Its
// JSON is what players get.
type Period struct {
	From  time.Time `json:"from"`
	Until time.Time `json:"until"`
	// Loop are the places in the playlist of what is shown, over and over.
	Loop []int `json:"loop"`
}

// Window is the time that a schedule made now is about.
func Window(now time.Time) (from, until time.Time) {
	hour := now.UTC().Truncate(time.Hour)
	return hour.Add(-scheduleBehind), hour.Add(scheduleAhead)
}

// open is when a device is on, in order and apart, for the next 30 hours at least.
// The first may have begun long before.
func (p Programme) open(zone *time.Location, now time.Time) []airtime.Range {
	from, end := Window(now)
	if len(p.Hours) == 0 {
		return []airtime.Range{{From: from, Until: end}}
	}
	hour := now.UTC().Truncate(time.Hour)
	// What is open over midnight is two openings, so that the first may be of a day
	// before.
	flight := airtime.Flight{First: airtime.DateOf(hour, zone).Add(-1), Last: airtime.DateOf(end, zone)}
	open := airtime.Times(zone, flight, p.Hours, nil)
	for len(open) > 0 && !open[0].Until.After(hour) {
		open = open[1:]
	}
	return airtime.Cut(open, flight.First.Add(-1).Midnight(), end)
}

// part is a time in which a loop is the same.
type part struct {
	airtime.Range
	// slots are what is booked in each; nil is free. There are none when all are.
	slots []*Item
}

// parts are what a schedule made now has in it.
func (p Programme) parts(now time.Time) ([]part, error) {
	zone := time.UTC
	if len(p.Hours)+len(p.Lines) > 0 {
		var err error
		if zone, err = time.LoadLocation(p.TimeZone); err != nil {
			return nil, fmt.Errorf("writing a schedule: %w", err)
		}
	}
	open := p.open(zone, now)
	booked := p.booked(zone, now)
	if len(booked) == 0 {
		parts := make([]part, len(open))
		for n, r := range open {
			parts[n] = part{Range: r}
		}
		return parts, nil
	}
	open = airtime.Cut(open, now.UTC().Truncate(time.Hour).Add(-scheduleBehind), now.Add(2*scheduleAhead))
	var parts []part
	moments := edges(open, booked)
	for n := 1; n < len(moments); n++ {
		from, until := moments[n-1], moments[n]
		for len(open) > 0 && !open[0].Until.After(from) {
			open = open[1:]
		}
		if len(open) == 0 || from.Before(open[0].From) {
			continue
		}
		slots := p.slotsAt(booked, from)
		if last := len(parts) - 1; last >= 0 && parts[last].Until.Equal(from) && slices.Equal(parts[last].slots, slots) {
			parts[last].Until = until
			continue
		}
		parts = append(parts, part{Range: airtime.Range{From: from, Until: until}, slots: slots})
	}
	return parts, nil
}

// booking is what a booked line shows, and when.
type booking struct {
	item  *Item
	slots []int
	times []airtime.Range
}

// booked are those of the lines that are on in what a schedule made now is about.
func (p Programme) booked(zone *time.Location, now time.Time) []*booking {
	from, until := Window(now)
	first, last := airtime.DateOf(from, zone), airtime.DateOf(until, zone)
	var all []*booking
	for _, line := range p.Lines {
		if line.Removed || line.Showing == nil {
			continue
		}
		flight := line.Flight
		if flight.First.Compare(first) < 0 {
			flight.First = first
		}
		if flight.Last.Compare(last) > 0 {
			flight.Last = last
		}
		times := airtime.Cut(airtime.Cut(airtime.Times(zone, flight, line.Dayparts, nil), line.Start, line.End), from, until)
		if len(times) == 0 {
			continue
		}
		item := *line.Showing
		// The owner may have shortened the slots: who booked after this one has theirs.
		item.DurationMS = min(item.DurationMS, int(p.SlotLength.Milliseconds()))
		all = append(all, &booking{item: &item, slots: line.Slots, times: times})
	}
	return all
}

// edges are the moments at which anything begins or ends, in order.
func edges(open []airtime.Range, booked []*booking) []time.Time {
	var all []time.Time
	add := func(ranges []airtime.Range) {
		for _, r := range ranges {
			all = append(all, r.From, r.Until)
		}
	}
	add(open)
	for _, b := range booked {
		add(b.times)
	}
	slices.SortFunc(all, time.Time.Compare)
	return slices.CompactFunc(all, time.Time.Equal)
}

// slotsAt is what is booked at a moment, nil without anything. It is asked for
// moments in their order. What is beyond the end of the loop, which the owner may
// have shortened, is not shown.
func (p Programme) slotsAt(booked []*booking, moment time.Time) []*Item {
	var slots []*Item
	for _, b := range booked {
		for len(b.times) > 0 && !b.times[0].Until.After(moment) {
			b.times = b.times[1:]
		}
		if len(b.times) == 0 || moment.Before(b.times[0].From) {
			continue
		}
		for _, slot := range b.slots {
			if slot >= p.Slots {
				continue
			}
			if slots == nil {
				slots = make([]*Item, p.Slots)
			}
			if slots[slot] == nil {
				slots[slot] = b.item
			}
		}
	}
	return slots
}

// periods write parts out: the items of the default playlist, and behind them those
// that are booked. A loop that has more than places is written out once.
func periods(parts []part, defaults []Item, places int) ([]Item, []Period) {
	items, all := slices.Clone(defaults), make([]Period, len(parts))
	if items == nil {
		items = []Item{}
	}
	known := make(map[*Item]int)
	placeOf := func(item *Item) int {
		place, ok := known[item]
		if !ok {
			place = len(items)
			known[item], items = place, append(items, *item)
		}
		return place
	}
	for n, part := range parts {
		all[n] = Period{From: part.From, Until: part.Until, Loop: loopOf(part.slots, len(defaults), places, placeOf)}
	}
	return items, all
}

// loopOf is the order in which booked slots, and in each free one the next of the
// default items, are shown. Free slots are left out when there are no such items.
func loopOf(slots []*Item, defaults, places int, placeOf func(*Item) int) []int {
	loop := []int{}
	if slots == nil {
		for n := range defaults {
			loop = append(loop, n)
		}
		return loop
	}
	free := 0
	for _, item := range slots {
		if item == nil {
			free++
		}
	}
	turns := 1
	if free > 0 && defaults > 0 {
		// After so many turns each item has had as many as any other.
		turns = min(defaults/divisor(defaults, free), max(1, places/len(slots)))
	}
	next := 0
	for range turns {
		for _, item := range slots {
			switch {
			case item != nil:
				loop = append(loop, placeOf(item))
			case defaults > 0:
				loop = append(loop, next%defaults)
				next++
			}
		}
	}
	return loop
}

// divisor is the greatest that two have in common.
func divisor(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
