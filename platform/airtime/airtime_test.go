package airtime

import (
	"math/rand/v2"
	"testing"
	"time"
	_ "time/tzdata" // whatever machine tests run on

	"github.com/stretchr/testify/require"
)

func date(t testing.TB, text string) Date {
	t.Helper()
	d, err := ParseDate(text)
	require.NoError(t, err)
	return d
}

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	location, err := time.LoadLocation(name)
	require.NoError(t, err)
	return location
}

// daily opens at the same minutes on all days.
func daily(openings ...int) (all []Opening) {
	for day := 1; day <= 7; day++ {
		for n := 0; n < len(openings); n += 2 {
			all = append(all, Opening{Weekday: day, Open: openings[n], Close: openings[n+1]})
		}
	}
	return all
}

func texts(ranges []Range) []string {
	all := []string{}
	for _, r := range ranges {
		all = append(all, r.From.Format("2006-01-02 15:04")+" - "+r.Until.Format("2006-01-02 15:04"))
	}
	return all
}

func TestTimes(t *testing.T) {
	const berlin = "Europe/Berlin"
	for name, c := range map[string]struct {
		zone            string
		first, last     string
		dayparts, hours []Opening
		want            []string // in UTC
	}{
		"WholeDays":     {berlin, "2026-01-16", "2026-01-17", nil, nil, []string{"2026-01-15 23:00 - 2026-01-17 23:00"}},
		"OneDay":        {berlin, "2026-07-16", "2026-07-16", nil, nil, []string{"2026-07-15 22:00 - 2026-07-16 22:00"}},
		"NoDay":         {berlin, "2026-07-16", "2026-07-15", nil, nil, []string{}},
		"Daypart":       {berlin, "2026-01-16", "2026-01-17", daily(480, 1200), nil, []string{"2026-01-16 07:00 - 2026-01-16 19:00", "2026-01-17 07:00 - 2026-01-17 19:00"}},
		"Touching":      {berlin, "2026-01-16", "2026-01-16", daily(480, 600, 600, 720), nil, []string{"2026-01-16 07:00 - 2026-01-16 11:00"}},
		"Unsorted":      {berlin, "2026-01-16", "2026-01-16", daily(600, 720, 480, 540), nil, []string{"2026-01-16 07:00 - 2026-01-16 08:00", "2026-01-16 09:00 - 2026-01-16 11:00"}},
		"OverMidnight":  {berlin, "2026-01-16", "2026-01-17", daily(0, 60, 1380, 1440), nil, []string{"2026-01-15 23:00 - 2026-01-16 00:00", "2026-01-16 22:00 - 2026-01-17 00:00", "2026-01-17 22:00 - 2026-01-17 23:00"}},
		"Hours":         {berlin, "2026-01-16", "2026-01-16", nil, daily(480, 1200), []string{"2026-01-16 07:00 - 2026-01-16 19:00"}},
		"BothMeet":      {berlin, "2026-01-16", "2026-01-16", daily(360, 600, 660, 720), daily(480, 690), []string{"2026-01-16 07:00 - 2026-01-16 09:00", "2026-01-16 10:00 - 2026-01-16 10:30"}},
		"BothMiss":      {berlin, "2026-01-16", "2026-01-18", daily(360, 480), daily(480, 690), []string{}},
		"OtherWeekday":  {berlin, "2026-01-16", "2026-01-18", []Opening{{Weekday: 1, Open: 0, Close: 60}}, nil, []string{}},
		"Sunday":        {berlin, "2026-01-16", "2026-01-19", []Opening{{Weekday: 7, Open: 0, Close: 60}}, nil, []string{"2026-01-17 23:00 - 2026-01-18 00:00"}},
		"OverTheYear":   {berlin, "2026-12-31", "2027-01-01", daily(0, 60), nil, []string{"2026-12-30 23:00 - 2026-12-31 00:00", "2026-12-31 23:00 - 2027-01-01 00:00"}},
		"YearsEndWhole": {"Pacific/Auckland", "2026-12-31", "2027-01-01", nil, nil, []string{"2026-12-30 11:00 - 2027-01-01 11:00"}},
		"LeapDay":       {"UTC", "2028-02-28", "2028-03-01", daily(0, 60), nil, []string{"2028-02-28 00:00 - 2028-02-28 01:00", "2028-02-29 00:00 - 2028-02-29 01:00", "2028-03-01 00:00 - 2028-03-01 01:00"}},
		// The clocks go on from 02:00 to 03:00 on 29 March, and back from 03:00 to 02:00
		// on 25 October.
		"SpringWhole":   {berlin, "2026-03-29", "2026-03-29", nil, nil, []string{"2026-03-28 23:00 - 2026-03-29 22:00"}},
		"SpringNight":   {berlin, "2026-03-29", "2026-03-29", daily(60, 240), nil, []string{"2026-03-29 00:00 - 2026-03-29 02:00"}},
		"SpringOpens":   {berlin, "2026-03-29", "2026-03-29", daily(150, 240), nil, []string{"2026-03-29 01:00 - 2026-03-29 02:00"}},
		"SpringCloses":  {berlin, "2026-03-29", "2026-03-29", daily(60, 150), nil, []string{"2026-03-29 00:00 - 2026-03-29 01:00"}},
		"SpringSkipped": {berlin, "2026-03-29", "2026-03-29", daily(130, 170), nil, []string{}},
		"AutumnWhole":   {berlin, "2026-10-25", "2026-10-25", nil, nil, []string{"2026-10-24 22:00 - 2026-10-25 23:00"}},
		"AutumnNight":   {berlin, "2026-10-25", "2026-10-25", daily(60, 240), nil, []string{"2026-10-24 23:00 - 2026-10-25 03:00"}},
		"AutumnOpens":   {berlin, "2026-10-25", "2026-10-25", daily(150, 240), nil, []string{"2026-10-25 00:30 - 2026-10-25 01:00", "2026-10-25 01:30 - 2026-10-25 03:00"}},
		"AutumnCloses":  {berlin, "2026-10-25", "2026-10-25", daily(60, 150), nil, []string{"2026-10-24 23:00 - 2026-10-25 00:30", "2026-10-25 01:00 - 2026-10-25 01:30"}},
		"AutumnWithin":  {berlin, "2026-10-25", "2026-10-25", daily(130, 170), nil, []string{"2026-10-25 00:10 - 2026-10-25 00:50", "2026-10-25 01:10 - 2026-10-25 01:50"}},
		// By half an hour, on the first Sundays of October and April.
		"HalfAnHourOn":   {"Australia/Lord_Howe", "2026-10-04", "2026-10-04", daily(60, 180), nil, []string{"2026-10-03 14:30 - 2026-10-03 16:00"}},
		"HalfAnHourBack": {"Australia/Lord_Howe", "2026-04-05", "2026-04-05", daily(90, 120), nil, []string{"2026-04-04 14:30 - 2026-04-04 15:30"}},
		"Quarters":       {"Asia/Kathmandu", "2026-01-16", "2026-01-16", daily(480, 1200), nil, []string{"2026-01-16 02:15 - 2026-01-16 14:15"}},
		// There is no midnight on 8 March in Havana, nor on 24 April in Cairo; in Havana
		// there are two on 1 November, and in Cairo the last hour of 29 October is twice.
		"NoMidnight":       {"America/Havana", "2026-03-08", "2026-03-08", nil, nil, []string{"2026-03-08 05:00 - 2026-03-09 04:00"}},
		"NoFirstHour":      {"America/Havana", "2026-03-08", "2026-03-08", daily(0, 60), nil, []string{}},
		"MidnightTwice":    {"America/Havana", "2026-11-01", "2026-11-01", daily(0, 60), nil, []string{"2026-11-01 04:00 - 2026-11-01 06:00"}},
		"NoMidnightCairo":  {"Africa/Cairo", "2026-04-24", "2026-04-24", daily(0, 120), nil, []string{"2026-04-23 22:00 - 2026-04-23 23:00"}},
		"LastHourTwice":    {"Africa/Cairo", "2026-10-29", "2026-10-29", daily(1380, 1440), nil, []string{"2026-10-29 20:00 - 2026-10-29 22:00"}},
		"AfterItsLastHour": {"Africa/Cairo", "2026-10-30", "2026-10-30", nil, nil, []string{"2026-10-29 22:00 - 2026-10-30 22:00"}},
		"BeforeItsEnd":     {"Africa/Cairo", "2026-10-29", "2026-10-29", nil, nil, []string{"2026-10-28 21:00 - 2026-10-29 22:00"}},
		// Samoa had no 30 December 2011.
		"NoSuchDay":    {"Pacific/Apia", "2011-12-30", "2011-12-30", nil, nil, []string{}},
		"RoundThatDay": {"Pacific/Apia", "2011-12-29", "2011-12-31", daily(0, 60), nil, []string{"2011-12-29 10:00 - 2011-12-29 11:00", "2011-12-30 10:00 - 2011-12-30 11:00"}},
		"FarEast":      {"Pacific/Kiritimati", "2026-01-16", "2026-01-16", nil, nil, []string{"2026-01-15 10:00 - 2026-01-16 10:00"}},
		"FarWest":      {"Etc/GMT+12", "2026-01-16", "2026-01-16", nil, nil, []string{"2026-01-16 12:00 - 2026-01-17 12:00"}},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, Check(c.dayparts))
			require.NoError(t, Check(c.hours))
			flight := Flight{First: date(t, c.first), Last: date(t, c.last)}
			ranges := Times(zone(t, c.zone), flight, c.dayparts, c.hours)
			require.Equal(t, c.want, texts(ranges))
			for _, r := range ranges {
				require.Equal(t, [2]*time.Location{time.UTC, time.UTC}, [2]*time.Location{r.From.Location(), r.Until.Location()})
			}
			require.Equal(t, ranges, Times(zone(t, c.zone), flight, c.hours, c.dayparts), "it does not matter which is which")
		})
	}
}

// onTheWall says whether the clock on the wall shows a time of a flight.
func onTheWall(wall time.Time, flight Flight, lists ...[]Opening) bool {
	day := Date{wall.Year(), wall.Month(), wall.Day()}
	on := flight.First.Compare(day) <= 0 && day.Compare(flight.Last) <= 0
	for _, list := range lists {
		in := len(list) == 0
		minute := wall.Hour()*60 + wall.Minute()
		for _, o := range list {
			in = in || o.Weekday%7 == int(wall.Weekday()) && o.Open <= minute && minute < o.Close
		}
		on = on && in
	}
	return on
}

// checkTimes looks at each minute from the day before a flight to the day after it.
func checkTimes(t *testing.T, location *time.Location, flight Flight, dayparts, hours []Opening) {
	t.Helper()
	ranges := Times(location, flight, dayparts, hours)
	for n, r := range ranges {
		require.True(t, r.From.Before(r.Until), "%s", r)
		require.True(t, n == 0 || ranges[n-1].Until.Before(r.From), "ranges are not in order, or touch: %s and %s", ranges[max(0, n-1)], r)
	}
	var minutes int
	first, last := flight.First.Add(-2).Midnight(), flight.Last.Add(3).Midnight()
	at := 0
	for minute := first; minute.Before(last); minute = minute.Add(time.Minute) {
		for at < len(ranges) && !minute.Before(ranges[at].Until) {
			at++
		}
		in := at < len(ranges) && !minute.Before(ranges[at].From)
		if want := onTheWall(minute.In(location), flight, dayparts, hours); in != want {
			require.Equal(t, want, in, "%s, that is %s in %s; flight %s to %s, dayparts %v, hours %v",
				minute, minute.In(location), location, flight.First, flight.Last, dayparts, hours)
		}
		if in {
			minutes++
		}
	}
	require.Equal(t, time.Duration(minutes)*time.Minute, Total(ranges), "they go further than they may")
}

var zones = []string{
	"UTC", "Europe/Berlin", "Europe/Dublin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Havana", "Africa/Cairo",
	"Africa/Casablanca", "Pacific/Chatham", "Pacific/Kiritimati", "America/Santiago", "Asia/Beirut", "America/Nuuk", "Antarctica/Troll",
}

// someOpenings pass Check.
func someOpenings(random *rand.Rand) []Opening {
	var list []Opening
	for day := 1; day <= 7; day++ {
		for open := 0; random.IntN(3) > 0 && open < MinutesOfDay; {
			open += random.IntN(2) * random.IntN(MinutesOfDay-open)
			end := open + 1 + random.IntN(MinutesOfDay-open)
			list = append(list, Opening{Weekday: day, Open: open, Close: end})
			open = end
		}
	}
	random.Shuffle(len(list), func(a, b int) { list[a], list[b] = list[b], list[a] })
	return list
}

// TestTimesAreTheWall compares with a clock on the wall, minute by minute: around
// each moment of two years at which the clocks of a zone are set, and elsewhere.
func TestTimesAreTheWall(t *testing.T) {
	const seed = 7
	random := rand.New(rand.NewPCG(seed, seed))
	for _, name := range zones {
		location := zone(t, name)
		days := []Date{{2026, time.December, 30}, {2028, time.February, 28}, {2027, time.January, 1 + random.IntN(300)}}
		for at := date(t, "2026-01-01").Midnight(); at.Year() < 2028; {
			_, next := at.In(location).ZoneBounds()
			if next.IsZero() {
				break
			}
			at = next
			days = append(days, DateOf(next, location))
		}
		for _, day := range days {
			for range 3 {
				first := day.Add(-random.IntN(3))
				checkTimes(t, location, Flight{First: first, Last: first.Add(random.IntN(4))}, someOpenings(random), someOpenings(random))
			}
			checkTimes(t, location, Flight{First: day, Last: day}, nil, nil)
		}
	}
}

// TestApartOnTheWall: of dayparts that are apart, on each day of a year, none are on
// together, and all of them together are always on.
func TestApartOnTheWall(t *testing.T) {
	flight := Flight{First: date(t, "2026-01-01"), Last: date(t, "2026-12-31")}
	for _, name := range zones {
		location := zone(t, name)
		parts := [][]Opening{daily(0, 90), daily(90, 150), daily(150, 1385), daily(1385, 1440)}
		var together time.Duration
		for n, a := range parts {
			ranges := Times(location, flight, a, nil)
			together += Total(ranges)
			for _, b := range parts[n+1:] {
				require.False(t, Overlap(ranges, Times(location, flight, b, nil)), "%s: %v and %v", name, a, b)
			}
		}
		all := Times(location, flight, nil, nil)
		require.Len(t, all, 1, name)
		require.Equal(t, Total(all), together, name)
	}
}

func FuzzTimes(f *testing.F) {
	f.Add(uint8(4), uint16(275), uint8(2), uint16(60), uint16(180), uint64(1))
	f.Add(uint8(7), uint16(300), uint8(1), uint16(1380), uint16(1440), uint64(2))
	f.Fuzz(func(t *testing.T, place uint8, day uint16, days uint8, open, end uint16, seed uint64) {
		first := Date{2026, time.January, 1}.Add(int(day % 4000))
		dayparts := daily(int(open), int(end))
		if Check(dayparts) != nil {
			dayparts = nil
		}
		hours := someOpenings(rand.New(rand.NewPCG(seed, seed)))
		require.NoError(t, Check(hours))
		checkTimes(t, zone(t, zones[int(place)%len(zones)]), Flight{First: first, Last: first.Add(int(days % 5))}, dayparts, hours)
	})
}

func TestCheck(t *testing.T) {
	for name, c := range map[string]struct {
		list []Opening
		want string // "" is none
	}{
		"None":         {nil, ""},
		"WholeDay":     {daily(0, 1440), ""},
		"Touching":     {daily(600, 720, 480, 600), ""},
		"OtherDays":    {[]Opening{{1, 0, 600}, {2, 0, 600}}, ""},
		"Overlap":      {[]Opening{{2, 480, 600}, {1, 0, 1440}, {2, 599, 700}}, "two of weekday 2 overlap"},
		"Same":         {[]Opening{{2, 480, 600}, {2, 480, 600}}, "overlap"},
		"NoWeekday":    {[]Opening{{0, 480, 600}}, "weekday 0"},
		"NoWeekday8":   {[]Opening{{8, 480, 600}}, "weekday 8"},
		"Empty":        {[]Opening{{1, 480, 480}}, "480 to 480"},
		"Backwards":    {[]Opening{{1, 1380, 60}}, "1380 to 60"},
		"AfterTheDay":  {[]Opening{{1, 480, 1441}}, "480 to 1441"},
		"BeforeTheDay": {[]Opening{{1, -1, 60}}, "-1 to 60"},
	} {
		t.Run(name, func(t *testing.T) {
			before := append([]Opening{}, c.list...)
			err := Check(c.list)
			require.Equal(t, before, append([]Opening{}, c.list...), "it was changed")
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestDate(t *testing.T) {
	d := date(t, "2026-12-31")
	require.Equal(t, Date{2026, time.December, 31}, d)
	require.Equal(t, "2026-12-31", d.String())
	require.Equal(t, "2027-01-01", d.Add(1).String())
	require.Equal(t, "2028-02-29", date(t, "2028-03-01").Add(-1).String())
	require.Equal(t, []int{-1, 0, 1}, []int{d.Compare(d.Add(1)), d.Compare(d.Add(0)), d.Add(1).Compare(d)})
	moment := time.Date(2026, 12, 31, 23, 30, 0, 0, time.UTC)
	require.Equal(t, "2027-01-01", DateOf(moment, zone(t, "Europe/Berlin")).String())
	require.Equal(t, "2026-12-31", DateOf(moment.In(zone(t, "Asia/Tokyo")), time.UTC).String())
	require.Equal(t, 1, Flight{d, d}.Days())
	require.Equal(t, 366, Flight{date(t, "2028-01-01"), date(t, "2028-12-31")}.Days())
	require.Zero(t, Flight{d, d.Add(-1)}.Days())
	require.Zero(t, Flight{d, d.Add(-300)}.Days())
	for _, text := range []string{"", "2026-02-29", "2026-13-01", "26-01-01", "2026-1-1", "2026-01-01T00:00:00Z", " 2026-01-01"} {
		_, err := ParseDate(text)
		require.ErrorContains(t, err, "2006-01-02", text)
	}
}

func TestRanges(t *testing.T) {
	at := func(minute int) time.Time { return time.Date(2026, 1, 1, 0, minute, 0, 0, time.UTC) }
	ranges := func(minutes ...int) (all []Range) {
		for n := 0; n < len(minutes); n += 2 {
			all = append(all, Range{at(minutes[n]), at(minutes[n+1])})
		}
		return all
	}
	list := ranges(0, 10, 20, 30, 40, 50)
	require.Equal(t, 30*time.Minute, Total(list))
	require.Equal(t, ranges(5, 10, 20, 30, 40, 45), Cut(list, at(5), at(45)))
	require.Equal(t, ranges(20, 30), Cut(list, at(10), at(40)))
	require.Equal(t, ranges(22, 24), Cut(list, at(22).In(time.FixedZone("", 3600)), at(24).In(time.FixedZone("", 3600))))
	require.Empty(t, Cut(list, at(10), at(20)))
	require.Empty(t, Cut(list, at(50), at(20)))
	require.Equal(t, list, ranges(0, 10, 20, 30, 40, 50), "it was changed")
	for _, c := range []struct {
		other []Range
		want  bool
	}{
		{nil, false}, {ranges(10, 20, 30, 40, 50, 60), false}, {ranges(10, 21), true}, {ranges(49, 60), true}, {ranges(-5, 60), true}, {ranges(10, 20, 41, 42), true},
	} {
		require.Equal(t, c.want, Overlap(list, c.other), "%v", c.other)
		require.Equal(t, c.want, Overlap(c.other, list), "%v", c.other)
	}
}

func BenchmarkTimesOfAYear(b *testing.B) {
	location := zone(b, "Europe/Berlin")
	flight := Flight{First: date(b, "2026-01-01"), Last: date(b, "2027-01-01")}
	dayparts, hours := daily(420, 600, 960, 1140), daily(360, 1320)
	for b.Loop() {
		Times(location, flight, dayparts, hours)
	}
}
