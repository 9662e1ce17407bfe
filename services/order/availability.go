package order

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/paging"
)

const (
	// One call looks at so many displays at most, in batches, and at so many ranges of
	// time: after that its page ends, however many it has.
	maxCandidates    = 2000
	maxBatch         = 500
	maxSearchedTimes = 100_000
)

// ErrSearch is what callers are told whose search is not possible.
var ErrSearch = fault.New(fault.InvalidArgument, "VALIDATION_FAILED", "the search is not possible")

// Area is between two parallels and two meridians, in degrees, WGS 84. One whose
// West is greater than its East lies across the 180th meridian.
type Area struct {
	South, West, North, East float64
}

// Orientation is how a screen hangs.
type Orientation string

// How screens hang.
const (
	Landscape Orientation = "LANDSCAPE" // wider than high, or square
	Portrait  Orientation = "PORTRAIT"
)

// DisplayFilter says which displays are wanted; its zero value is all.
type DisplayFilter struct {
	IDs  []string
	Area *Area // nil is everywhere
	// VenueTypes also stand for those below them.
	VenueTypes  []string
	Orientation Orientation // "" is any
	// MinWidthPX and MinHeightPX are what their screens have at least.
	MinWidthPX, MinHeightPX int
	// MaxSlotPrice is what one play of one slot costs at most, in this currency; nil is
	// anything.
	MaxSlotPrice *Money
}

// Search is air time that is looked for.
type Search struct {
	// StartDate and EndDate are the first and the last day, as 2006-01-02.
	StartDate, EndDate string
	Dayparts           []airtime.Opening // all of the flight without any
	// Slots is how many of each loop; 0 is 1.
	Slots  int
	Filter DisplayFilter
	// IncludeFull also finds displays on which fewer slots are free.
	IncludeFull bool
}

// Availability is what is free on a display during all of a time.
type Availability struct {
	Display   Display
	FreeSlots int
	// Plays is how often the slots that are wanted play in all, and Price what they cost.
	Plays int64
	Price Money
}

// SearchAvailability returns a page of displays that can be booked, ordered by their
// ids, and the token of the next, empty on the last. A page that is not the last may
// have fewer than asked for, or none. Errors: ErrSearch, paging.ErrTokenInvalid.
func (s *Service) SearchAvailability(ctx context.Context, wanted Search, page paging.Page) ([]Availability, string, error) {
	const of = "availability"
	now := s.moment()
	q, err := wanted.checked(now)
	if err != nil {
		return nil, "", err
	}
	after, err := page.Open(of)
	if err != nil {
		return nil, "", err
	}
	size := page.Limit()
	var found []Availability
	// One more than asked for tells whether there is another page.
	batch := min(size+1, maxBatch)
	for left := maxCandidates; left > 0; {
		batch = min(batch, left)
		candidates, err := s.store.SearchDisplays(ctx, wanted.Filter, after, batch)
		if err != nil {
			return nil, "", fmt.Errorf("reading displays: %w", err)
		}
		offers := q.offers(candidates)
		if err := s.count(ctx, q.sets, offers); err != nil {
			return nil, "", err
		}
		for _, o := range offers {
			if o.possible && (wanted.IncludeFull || o.FreeSlots >= q.slots) {
				if len(found) == size {
					return found, paging.Seal(of, after), nil
				}
				found = append(found, o.Availability)
			}
			after = o.Display.DeviceID
		}
		if len(offers) < len(candidates) {
			break
		}
		if len(candidates) < batch {
			return found, "", nil
		}
		left -= batch
		batch = min(2*batch, maxBatch)
	}
	return found, paging.Seal(of, after), nil
}

// checked makes sure that a search is possible. Errors: ErrSearch.
func (w Search) checked(now time.Time) (*searched, error) {
	flight, err := checkFlight(ErrSearch, "flight", w.StartDate, w.EndDate)
	if err != nil {
		return nil, err
	}
	dayparts, err := checkDayparts(ErrSearch, "dayparts", w.Dayparts)
	if err != nil {
		return nil, err
	}
	// The dates that calendars show somewhere.
	const west, east = -12 * time.Hour, 14 * time.Hour
	switch a := w.Filter.Area; {
	case flight.First.Compare(airtime.DateOf(now.Add(west), time.UTC)) < 0:
		return nil, ErrSearch.WithField("flight.start_date", "flight.past", "is before today")
	case flight.First.Compare(lastStart(now.Add(east), time.UTC)) > 0:
		return nil, ErrSearch.WithField("flight.start_date", "flight.ahead", "is more than two years ahead")
	case a != nil && a.North < a.South:
		return nil, ErrSearch.WithField("area.north", "area.order", "is south of area.south")
	case w.Slots < 0 || w.Slots > MaxSlots:
		return nil, ErrSearch.WithField("slots", "slots.some", fmt.Sprintf("are not 1 to %d", MaxSlots))
	}
	return &searched{
		flight: flight, dayparts: dayparts, slots: cmp.Or(w.Slots, 1), now: now, zones: map[string]*time.Location{}, byHours: map[string]int{},
	}, nil
}

// lastStart is the last day on which a flight may begin.
func lastStart(now time.Time, zone *time.Location) airtime.Date {
	return airtime.DateOf(now, zone).Add(int(MaxAhead / (24 * time.Hour)))
}

// searched is a search under way. Displays with the same hours in the same time zone
// share a set of times.
type searched struct {
	flight   airtime.Flight
	dayparts []airtime.Opening
	slots    int
	now      time.Time
	zones    map[string]*time.Location // nil for one that there is not
	sets     [][]airtime.Range
	byHours  map[string]int // the places in sets
	times    int            // how many ranges sets have
}

// offer is a display that may be offered.
type offer struct {
	Availability
	possible bool
	set      int
}

// offers are what candidates have, when all their slots are free: the first of them
// when the search has no room for the times of the others.
func (q *searched) offers(candidates []Display) []offer {
	offers := make([]offer, 0, len(candidates))
	for _, d := range candidates {
		if q.times > maxSearchedTimes {
			break
		}
		o := offer{Availability: Availability{Display: d, FreeSlots: d.Slots()}}
		o.set, o.possible = q.on(d)
		if o.possible {
			o.Plays = PlaysOf(q.sets[o.set], d.LoopLength, q.slots)
			var err error
			o.Price, err = PriceOf(o.Plays, d.SlotPrice)
			o.possible = err == nil && o.Plays > 0
		}
		offers = append(offers, o)
	}
	return offers
}

// on is the place of a display's times; not ok are those on which such a flight cannot
// begin.
func (q *searched) on(d Display) (set int, ok bool) {
	zone := q.zone(d.TimeZone)
	if zone == nil || q.flight.First.Compare(airtime.DateOf(q.now, zone)) < 0 || q.flight.First.Compare(lastStart(q.now, zone)) > 0 {
		return 0, false
	}
	key := fmt.Sprint(d.TimeZone, d.Hours)
	set, known := q.byHours[key]
	if !known {
		set = len(q.sets)
		times := airtime.Times(zone, q.flight, q.dayparts, d.Hours)
		if len(times) > 0 {
			times = airtime.Cut(times, wholeSecond(q.now), times[len(times)-1].Until)
		}
		q.byHours[key], q.sets, q.times = set, append(q.sets, times), q.times+len(times)
	}
	return set, true
}

// zone is nil for one that this program does not know: nothing can be sold in it.
func (q *searched) zone(name string) *time.Location {
	zone, read := q.zones[name]
	if !read {
		var err error
		if zone, err = time.LoadLocation(name); err != nil {
			zone = nil
		}
		q.zones[name] = zone
	}
	return zone
}

// count takes off what somebody has.
func (s *Service) count(ctx context.Context, sets [][]airtime.Range, offers []offer) error {
	var (
		wanted []WantedSlots
		asked  [][]airtime.Range
		places = map[int]int{} // of sets in asked
	)
	for _, o := range offers {
		if !o.possible {
			continue
		}
		place, known := places[o.set]
		if !known {
			place = len(asked)
			places[o.set], asked = place, append(asked, sets[o.set])
		}
		wanted = append(wanted, WantedSlots{Number: o.Display.Number, Slots: o.Display.Slots(), Set: place})
	}
	if wanted == nil {
		return nil
	}
	taken, err := s.store.TakenSlots(ctx, asked, wanted)
	if err != nil {
		return fmt.Errorf("reading what is taken: %w", err)
	}
	for i := range offers {
		offers[i].FreeSlots -= taken[offers[i].Display.Number]
	}
	return nil
}
