package device

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/airtime"
)

// item is one to show, for ten seconds.
func item(creative string) Item {
	hash := strings.Repeat("0", 64)
	return Item{CreativeID: creative, URL: mediaPath + hash, SHA256: hash, MediaType: "image/png", DurationMS: 10000}
}

// lineOn is a booked line of these days of 2026, "16.01." to "17.01.", that shows what
// has its name.
func lineOn(t *testing.T, name, first, last string, dayparts []airtime.Opening, slots ...int) BookedLine {
	t.Helper()
	i := item(name)
	return BookedLine{
		ID: "lin_" + name, Revision: 1, Dayparts: dayparts, Slots: slots, Showing: &i, Start: at(t, "01.01. 00:00"), End: at(t, "31.12. 00:00"),
		Flight: airtime.Flight{First: airtime.DateOf(at(t, first+" 00:00"), time.UTC), Last: airtime.DateOf(at(t, last+" 00:00"), time.UTC)},
	}
}

// sheet is a document as players read it.
type sheet struct {
	Items    []Item   `json:"items"`
	Schedule []Period `json:"schedule"`
}

func read(t *testing.T, p Programme, now time.Time) (sheet, document) {
	t.Helper()
	d, err := p.document(now)
	require.NoError(t, err)
	require.LessOrEqual(t, len(d.text), maxDocument)
	var s sheet
	require.NoError(t, json.Unmarshal(d.text, &s))
	require.LessOrEqual(t, len(s.Schedule), MaxPeriods)
	for n, period := range s.Schedule {
		require.True(t, period.From.Before(period.Until))
		require.True(t, n == 0 || !period.From.Before(s.Schedule[n-1].Until), "periods overlap")
		require.NotNil(t, period.Loop)
		require.LessOrEqual(t, len(period.Loop), MaxSlots)
	}
	return s, d
}

// loop are the names of what a period shows.
func (s sheet) loop(p Period) string {
	names := []string{}
	for _, place := range p.Loop {
		names = append(names, s.Items[place].CreativeID)
	}
	return strings.Join(names, " ")
}

func TestBookedSchedule(t *testing.T) {
	removed := func(l BookedLine) BookedLine { l.Removed = true; return l }
	blank := func(l BookedLine) BookedLine { l.Showing = nil; return l }
	between := func(l BookedLine, start, end string) BookedLine {
		l.Start, l.End = at(t, start), at(t, end)
		return l
	}
	none := []airtime.Opening(nil)
	for name, c := range map[string]struct {
		zone     string
		hours    []airtime.Opening
		defaults string // a name each
		slots    int    // 0 is 4
		lines    []BookedLine
		now      string
		want     []string
	}{
		"NothingBooked": {defaults: "ab", now: "16.01. 12:00", want: []string{"16.01. 11:00 - 17.01. 19:00: a b"}},
		"NothingElse":   {lines: []BookedLine{lineOn(t, "X", "16.01.", "20.01.", none, 1)}, now: "16.01. 12:00", want: []string{"16.01. 11:00 - 17.01. 19:00: X"}},
		"Begins":        {lines: []BookedLine{lineOn(t, "X", "17.01.", "20.01.", none, 1)}, now: "16.01. 12:00", want: []string{"16.01. 11:00 - 17.01. 00:00: ", "17.01. 00:00 - 17.01. 19:00: X"}},
		"Ends":          {defaults: "a", lines: []BookedLine{lineOn(t, "X", "10.01.", "16.01.", none, 1)}, now: "16.01. 12:00", want: []string{"16.01. 11:00 - 17.01. 00:00: a X a a", "17.01. 00:00 - 17.01. 19:00: a"}},
		"NotYet":        {defaults: "a", lines: []BookedLine{lineOn(t, "X", "18.01.", "20.01.", none, 1)}, now: "16.01. 12:00", want: []string{"16.01. 11:00 - 17.01. 19:00: a"}},
		"Over":          {defaults: "a", lines: []BookedLine{lineOn(t, "X", "10.01.", "15.01.", none, 1)}, now: "16.01. 12:00", want: []string{"16.01. 11:00 - 17.01. 19:00: a"}},
		"InOrder": {
			lines: []BookedLine{lineOn(t, "X", "16.01.", "17.01.", none, 3), lineOn(t, "Y", "16.01.", "17.01.", none, 0, 2)},
			now:   "16.01. 12:00", want: []string{"16.01. 11:00 - 17.01. 19:00: Y Y X"},
		},
		"AllHaveTheirTurn": {defaults: "ab", lines: []BookedLine{lineOn(t, "X", "16.01.", "17.01.", none, 0)}, now: "16.01. 12:00", want: []string{"16.01. 11:00 - 17.01. 19:00: X a b a X b a b"}},
		"OneFreeSlot": {
			defaults: "abc", lines: []BookedLine{lineOn(t, "X", "16.01.", "17.01.", none, 0, 2, 3)},
			now: "16.01. 12:00", want: []string{"16.01. 11:00 - 17.01. 19:00: X a X X X b X X X c X X"},
		},
		"AsManyAsFree": {defaults: "abc", lines: []BookedLine{lineOn(t, "X", "16.01.", "17.01.", none, 2)}, now: "16.01. 12:00", want: []string{"16.01. 11:00 - 17.01. 19:00: a b X c"}},
		"Full":         {defaults: "abc", lines: []BookedLine{lineOn(t, "X", "16.01.", "17.01.", none, 0, 1, 2, 3)}, now: "16.01. 12:00", want: []string{"16.01. 11:00 - 17.01. 19:00: X X X X"}},
		"OneSlotInDisjointDayparts": {
			lines: []BookedLine{lineOn(t, "X", "16.01.", "17.01.", daily(0, 12*60), 0), lineOn(t, "Y", "16.01.", "17.01.", daily(12*60, 24*60), 0)},
			now:   "16.01. 12:00", want: []string{"16.01. 11:00 - 16.01. 12:00: X", "16.01. 12:00 - 17.01. 00:00: Y", "17.01. 00:00 - 17.01. 12:00: X", "17.01. 12:00 - 17.01. 19:00: Y"},
		},
		"BeyondTheLoop": {
			defaults: "a", slots: 2, lines: []BookedLine{lineOn(t, "X", "16.01.", "17.01.", none, 1, 2), lineOn(t, "Y", "16.01.", "17.01.", none, 3)},
			now: "16.01. 12:00", want: []string{"16.01. 11:00 - 17.01. 19:00: a X"},
		},
		"AllBeyondTheLoop": {defaults: "a", slots: 2, lines: []BookedLine{lineOn(t, "Y", "16.01.", "17.01.", none, 3)}, now: "16.01. 12:00", want: []string{"16.01. 11:00 - 17.01. 19:00: a"}},
		"StartAndEnd": {
			defaults: "a", lines: []BookedLine{between(lineOn(t, "X", "16.01.", "17.01.", none, 0), "16.01. 13:30", "17.01. 02:15")},
			now: "16.01. 12:00", want: []string{"16.01. 11:00 - 16.01. 13:30: a", "16.01. 13:30 - 17.01. 02:15: X a a a", "17.01. 02:15 - 17.01. 19:00: a"},
		},
		"Removed":     {defaults: "a", lines: []BookedLine{removed(lineOn(t, "X", "16.01.", "17.01.", none, 0))}, now: "16.01. 12:00", want: []string{"16.01. 11:00 - 17.01. 19:00: a"}},
		"NotApproved": {defaults: "a", lines: []BookedLine{blank(lineOn(t, "X", "16.01.", "17.01.", none, 0))}, now: "16.01. 12:00", want: []string{"16.01. 11:00 - 17.01. 19:00: a"}},
		"WhileOpen": {
			zone: "Europe/Berlin", hours: daily(8*60, 20*60), defaults: "a", lines: []BookedLine{lineOn(t, "X", "16.01.", "17.01.", daily(6*60, 12*60), 0)},
			now: "16.01. 08:30", want: []string{"16.01. 07:00 - 16.01. 11:00: X a a a", "16.01. 11:00 - 16.01. 19:00: a", "17.01. 07:00 - 17.01. 11:00: X a a a", "17.01. 11:00 - 17.01. 15:00: a"},
		},
		// The clocks go on from 02:00 to 03:00 on 29 March, and back from 03:00 to 02:00
		// on 25 October.
		"Spring": {
			zone: "Europe/Berlin", lines: []BookedLine{lineOn(t, "X", "29.03.", "29.03.", daily(60, 150), 0), lineOn(t, "Y", "29.03.", "29.03.", daily(150, 240), 0)},
			now: "28.03. 23:30", want: []string{"28.03. 22:00 - 29.03. 00:00: ", "29.03. 00:00 - 29.03. 01:00: X", "29.03. 01:00 - 29.03. 02:00: Y", "29.03. 02:00 - 30.03. 06:00: "},
		},
		"Autumn": {
			zone: "Europe/Berlin", lines: []BookedLine{lineOn(t, "X", "25.10.", "25.10.", daily(60, 150), 0), lineOn(t, "Y", "25.10.", "25.10.", daily(150, 240), 0)},
			now: "24.10. 23:30", want: []string{
				"24.10. 22:00 - 24.10. 23:00: ", "24.10. 23:00 - 25.10. 00:30: X", "25.10. 00:30 - 25.10. 01:00: Y", "25.10. 01:00 - 25.10. 01:30: X", "25.10. 01:30 - 25.10. 03:00: Y", "25.10. 03:00 - 26.10. 06:00: ",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := Programme{Playlist: Playlist{DeviceID: "dev_1", Version: 1}, TimeZone: c.zone, Hours: c.hours, Slots: cmp.Or(c.slots, 4), SlotLength: 10 * time.Second, Lines: c.lines}
			for _, name := range strings.Split(c.defaults, "") {
				p.Items = append(p.Items, item(name))
			}
			if c.defaults == "" {
				p.Items = nil
			}
			got := []string{}
			s, d := read(t, p, at(t, c.now))
			for _, period := range s.Schedule {
				got = append(got, period.From.Format("02.01. 15:04")+" - "+period.Until.Format("02.01. 15:04")+": "+s.loop(period))
			}
			require.Equal(t, c.want, got)
			again, err := p.document(at(t, c.now).Truncate(time.Hour))
			require.NoError(t, err)
			require.Equal(t, string(d.text), string(again.text), "those of an hour are the same")
			_, end := Window(at(t, c.now))
			require.Equal(t, end, d.until)
		})
	}
}

func TestShowingIsNotLongerThanASlot(t *testing.T) {
	line := lineOn(t, "X", "16.01.", "17.01.", nil, 0)
	p := Programme{Slots: 2, SlotLength: 7 * time.Second, Lines: []BookedLine{line}}
	s, _ := read(t, p, at(t, "16.01. 12:00"))
	require.Equal(t, 7000, s.Items[0].DurationMS)
	require.Equal(t, 10000, line.Showing.DurationMS, "what was told is changed")
}

// TestScheduleIsWhatIsBooked sells slots at random and looks at each minute of the
// next 30 hours, in several zones, around the days on which clocks are set.
func TestScheduleIsWhatIsBooked(t *testing.T) {
	const seed, slots = 5, 4
	random := rand.New(rand.NewPCG(seed, seed))
	for _, zone := range []string{"UTC", "Europe/Berlin", "Australia/Lord_Howe", "America/Havana", "Asia/Kathmandu"} {
		location, err := time.LoadLocation(zone)
		require.NoError(t, err)
		for _, day := range []string{"16.01.", "08.03.", "29.03.", "05.04.", "04.10.", "25.10.", "01.11."} {
			first := airtime.DateOf(at(t, day+" 00:00"), time.UTC)
			p := Programme{TimeZone: zone, Slots: slots, SlotLength: 10 * time.Second}
			if random.IntN(2) == 0 {
				p.Hours = daily(random.IntN(300), 1000+random.IntN(440))
			}
			// Of each slot's day one part is one's, and the rest the other's.
			for slot := range slots {
				from, until := random.IntN(700), 701+random.IntN(740)
				x := lineOn(t, fmt.Sprint("X", slot), day, day, daily(from, until), slot)
				x.Flight.First, x.Flight.Last = first.Add(-random.IntN(3)), first.Add(random.IntN(3))
				y := lineOn(t, fmt.Sprint("Y", slot), day, day, daily(until, airtime.MinutesOfDay), slot)
				y.Flight = x.Flight
				p.Lines = append(p.Lines, x, y)
			}
			now := first.Midnight().Add(time.Duration(random.IntN(48*60)-24*60) * time.Minute)
			s, d := read(t, p, now)
			require.False(t, d.until.Before(now.Add(30*time.Hour)), "it ends early")
			for minute := now; minute.Before(now.Add(30 * time.Hour)); minute = minute.Add(time.Minute) {
				wall := minute.In(location)
				in := func(list []airtime.Opening) bool {
					of := wall.Hour()*60 + wall.Minute()
					return slices.ContainsFunc(list, func(o airtime.Opening) bool {
						return o.Weekday%7 == int(wall.Weekday()) && o.Open <= of && of < o.Close
					})
				}
				want := make([]string, slots)
				for _, l := range p.Lines {
					date := airtime.DateOf(minute, location)
					if (p.Hours == nil || in(p.Hours)) && in(l.Dayparts) && l.Flight.First.Compare(date) <= 0 && date.Compare(l.Flight.Last) <= 0 {
						want[l.Slots[0]] = l.Showing.CreativeID
					}
				}
				got := ""
				for _, period := range s.Schedule {
					if !minute.Before(period.From) && minute.Before(period.Until) {
						got = s.loop(period)
					}
				}
				require.Equal(t, strings.Join(strings.Fields(strings.Join(want, " ")), " "), got, "%s in %s", wall, zone)
			}
		}
	}
}

// TestTooManyPeriods: a schedule that has no room for all ends earlier, and begins with
// what is on.
func TestTooManyPeriods(t *testing.T) {
	p := Programme{Slots: 1, SlotLength: 10 * time.Second}
	for minute := 0; minute < airtime.MinutesOfDay; minute += 2 {
		p.Lines = append(p.Lines, lineOn(t, fmt.Sprint("X", minute), "10.01.", "20.01.", daily(minute, minute+1), 0))
	}
	now := at(t, "16.01. 12:57")
	s, d := read(t, p, now)
	require.Len(t, s.Schedule, MaxPeriods)
	require.False(t, s.Schedule[0].From.After(now))
	require.Equal(t, s.Schedule[MaxPeriods-1].Until, d.until)
	require.True(t, d.until.After(now.Add(40*time.Minute)), "it ends at %s", d.until)
	require.Zero(t, d.omitted)
}

func TestTooLong(t *testing.T) {
	now := at(t, "16.01. 12:57")
	programme := func(slots, defaults int) Programme {
		p := Programme{Slots: slots, SlotLength: time.Second}
		for n := range defaults {
			p.Items = append(p.Items, item(fmt.Sprint("default-", n)))
		}
		return p
	}
	t.Run("FewerTurns", func(t *testing.T) {
		p := programme(10, 97)
		for n := range 12 {
			p.Lines = append(p.Lines, lineOn(t, fmt.Sprint("X", n), "10.01.", "20.01.", daily(60*n, 60*n+30), 0))
		}
		s, d := read(t, p, now)
		_, end := Window(now)
		require.Equal(t, end, d.until, "it could have fewer turns, and ends early")
		require.Len(t, s.Items, 97+12)
		longest := 0
		for _, period := range s.Schedule {
			longest = max(longest, len(period.Loop))
		}
		require.Equal(t, maxPlaces/4/10*10, longest, "of the 970 that all items need for their turn, as many as fit")
	})
	t.Run("EndsEarlier", func(t *testing.T) {
		p := programme(60, 90)
		for n := range 24 * 60 {
			p.Lines = append(p.Lines, lineOn(t, fmt.Sprint("X", n), "10.01.", "20.01.", daily(60*(n%24), 60*(n%24)+60), n/24))
		}
		s, d := read(t, p, now)
		require.True(t, d.until.After(now.Add(time.Hour)), "it ends at %s", d.until)
		require.Equal(t, d.until, s.Schedule[len(s.Schedule)-1].Until)
		require.False(t, s.Schedule[0].From.After(now))
		require.Len(t, s.Schedule[0].Loop, 60)
		require.Zero(t, d.omitted)
	})
	t.Run("NoDefaults", func(t *testing.T) {
		p := programme(6, 100)
		for n := range p.Items {
			p.Items[n].URL = "https://media.example/" + strings.Repeat("a", 2000)
		}
		p.Lines = append(p.Lines, lineOn(t, "X", "10.01.", "20.01.", nil, 3))
		s, d := read(t, p, now)
		require.Len(t, s.Items, 1)
		require.Equal(t, "X", s.loop(s.Schedule[0]))
		require.Zero(t, d.omitted)
	})
	t.Run("LastSlots", func(t *testing.T) {
		p := programme(MaxSlots, 3)
		for n := range MaxSlots {
			p.Lines = append(p.Lines, lineOn(t, fmt.Sprint("X", n), "10.01.", "20.01.", nil, n))
		}
		s, d := read(t, p, now)
		require.Greater(t, len(s.Items), 150)
		require.Equal(t, MaxSlots, len(s.Items)+d.omitted)
		for n, place := range s.Schedule[0].Loop {
			require.Equal(t, fmt.Sprint("X", n), s.Items[place].CreativeID)
		}
	})
	t.Run("LongestLoop", func(t *testing.T) {
		p := programme(MaxSlots, 100)
		p.Lines = append(p.Lines, lineOn(t, "X", "10.01.", "20.01.", nil, 0, MaxSlots-1))
		s, d := read(t, p, now)
		require.Len(t, s.Schedule[0].Loop, MaxSlots)
		require.Zero(t, d.omitted)
	})
}

func TestLineCheck(t *testing.T) {
	good := func() BookedLine {
		l := lineOn(t, "01ARZ3NDEKTSV4RRFFQ69G5FAV", "16.01.", "17.01.", daily(60, 120), 0, 2)
		l.DeviceID, l.TakenDown = "dev_01ARZ3NDEKTSV4RRFFQ69G5FAV", []string{l.ID + "-1"}
		l.Showing.CreativeID = l.ID + "-2"
		return l
	}
	for name, c := range map[string]struct {
		change func(*BookedLine)
		want   string // "" is none
	}{
		"OK":            {func(*BookedLine) {}, ""},
		"OKNoShowing":   {func(l *BookedLine) { l.Showing = nil }, ""},
		"OKRemoved":     {func(l *BookedLine) { l.Removed, l.Slots, l.Showing = true, nil, nil }, ""},
		"ErrID":         {func(l *BookedLine) { l.ID = "line" }, "line_id"},
		"ErrIDText":     {func(l *BookedLine) { l.ID = "lin_\x00" }, "line_id"},
		"ErrDevice":     {func(l *BookedLine) { l.DeviceID = "dev_1" }, "device_id"},
		"ErrRevision":   {func(l *BookedLine) { l.Revision = 0 }, "revision 0"},
		"ErrFlight":     {func(l *BookedLine) { l.Flight.Last = l.Flight.First.Add(-1) }, "the flight ends on 2026-01-15"},
		"ErrTimes":      {func(l *BookedLine) { l.Start, l.End = l.End, l.Start }, "before it begins"},
		"ErrUnsorted":   {func(l *BookedLine) { l.Slots = []int{2, 1} }, "do not ascend"},
		"ErrTwice":      {func(l *BookedLine) { l.Slots = []int{2, 2} }, "do not ascend"},
		"ErrNegative":   {func(l *BookedLine) { l.Slots = []int{-1, 2} }, "0 to 3599"},
		"ErrFar":        {func(l *BookedLine) { l.Slots = []int{3600} }, "0 to 3599"},
		"ErrDayparts":   {func(l *BookedLine) { l.Dayparts[0].Close = 10 }, "the dayparts"},
		"ErrTakenDown":  {func(l *BookedLine) { l.TakenDown = []string{"no showing"} }, "taken_down"},
		"ErrShowing":    {func(l *BookedLine) { l.Showing.CreativeID = "lin_other-1" }, "showing_id"},
		"ErrLongID":     {func(l *BookedLine) { l.Showing.CreativeID = l.ID + "-" + strings.Repeat("1", 64) }, "showing_id"},
		"ErrHash":       {func(l *BookedLine) { l.Showing.SHA256 = "0" }, "sha256"},
		"ErrPath":       {func(l *BookedLine) { l.Showing.URL = "https://media.example/a" }, "url"},
		"ErrMediaType":  {func(l *BookedLine) { l.Showing.MediaType = "picture" }, "media_type"},
		"ErrDuration":   {func(l *BookedLine) { l.Showing.DurationMS = 0 }, "duration_ms"},
		"ErrDurationOf": {func(l *BookedLine) { l.Showing.DurationMS = 600_001 }, "duration_ms"},
	} {
		t.Run(name, func(t *testing.T) {
			l := good()
			c.change(&l)
			err := l.Check()
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.want)
		})
	}
}
