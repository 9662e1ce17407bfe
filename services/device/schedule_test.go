package device

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // as the program has it

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/airtime"
)

// at is a moment of 2026, as day.month hour:minute in UTC.
func at(t *testing.T, text string) time.Time {
	t.Helper()
	moment, err := time.Parse("2006 02.01. 15:04", "2026 "+text)
	require.NoError(t, err)
	return moment
}

// daily opens at the same minutes on all days.
func daily(open, closed int) (all []airtime.Opening) {
	for day := 1; day <= 7; day++ {
		all = append(all, airtime.Opening{Weekday: day, Open: open, Close: closed})
	}
	return all
}

// schedule is that of two items of a default playlist.
func schedule(zone string, hours []airtime.Opening, now time.Time) ([]Period, error) {
	p := Programme{Playlist: Playlist{Items: make([]Item, 2)}, TimeZone: zone, Hours: hours, Slots: 6, SlotLength: 10 * time.Second}
	parts, err := p.parts(now)
	_, all := periods(parts, p.Items, maxPlaces)
	return all, err
}

func TestSchedule(t *testing.T) {
	const berlin = "Europe/Berlin"
	for name, c := range map[string]struct {
		zone  string
		hours []airtime.Opening
		now   string
		want  []string // in UTC
	}{
		"Always":  {berlin, nil, "21.11. 23:20", []string{"21.11. 22:00 - 23.11. 06:00"}},
		"Winter":  {berlin, daily(8*60, 20*60), "16.01. 12:00", []string{"16.01. 07:00 - 16.01. 19:00", "17.01. 07:00 - 17.01. 19:00"}},
		"Summer":  {berlin, daily(8*60, 20*60), "16.07. 12:00", []string{"16.07. 06:00 - 16.07. 18:00", "17.07. 06:00 - 17.07. 18:00"}},
		"CutOff":  {berlin, daily(8*60, 20*60), "16.01. 03:59", []string{"16.01. 07:00 - 16.01. 19:00", "17.01. 07:00 - 17.01. 10:00"}},
		"AllDay":  {berlin, daily(0, 24*60), "16.01. 12:00", []string{"14.01. 23:00 - 17.01. 19:00"}},
		"Tokyo":   {"Asia/Tokyo", daily(8*60, 20*60), "16.01. 22:00", []string{"16.01. 23:00 - 17.01. 11:00", "17.01. 23:00 - 18.01. 05:00"}},
		"NewYork": {"America/New_York", daily(8*60, 20*60), "16.01. 00:30", []string{"15.01. 13:00 - 16.01. 01:00", "16.01. 13:00 - 17.01. 01:00"}},
		// The clocks go on from 02:00 to 03:00 on 29 March, and back from 03:00 to 02:00
		// on 25 October.
		"SpringDay":       {berlin, daily(8*60, 20*60), "28.03. 12:00", []string{"28.03. 07:00 - 28.03. 19:00", "29.03. 06:00 - 29.03. 18:00"}},
		"SpringNight":     {berlin, daily(60, 4*60), "28.03. 12:00", []string{"29.03. 00:00 - 29.03. 02:00"}},
		"SpringOpens":     {berlin, daily(2*60+30, 4*60), "28.03. 12:00", []string{"29.03. 01:00 - 29.03. 02:00"}},
		"SpringCloses":    {berlin, daily(60, 2*60+30), "28.03. 12:00", []string{"29.03. 00:00 - 29.03. 01:00"}},
		"SpringSkipped":   {berlin, daily(2*60+10, 2*60+50), "28.03. 12:00", []string{}},
		"AutumnDay":       {berlin, daily(8*60, 20*60), "24.10. 12:00", []string{"24.10. 06:00 - 24.10. 18:00", "25.10. 07:00 - 25.10. 19:00"}},
		"AutumnNight":     {berlin, daily(60, 4*60), "24.10. 12:00", []string{"24.10. 23:00 - 25.10. 03:00"}},
		"AutumnOpens":     {berlin, daily(2*60+30, 4*60), "24.10. 12:00", []string{"25.10. 00:30 - 25.10. 01:00", "25.10. 01:30 - 25.10. 03:00"}},
		"AutumnCloses":    {berlin, daily(60, 2*60+30), "24.10. 12:00", []string{"24.10. 23:00 - 25.10. 00:30", "25.10. 01:00 - 25.10. 01:30"}},
		"AutumnTwice":     {berlin, append(daily(60, 2*60+30), daily(2*60+30, 4*60)...), "24.10. 12:00", []string{"24.10. 23:00 - 25.10. 03:00"}},
		"AutumnMidnight":  {"America/Havana", daily(0, 60), "31.10. 12:00", []string{"01.11. 04:00 - 01.11. 06:00"}},
		"OverMidnight":    {berlin, append(daily(0, 2*60), daily(18*60, 24*60)...), "16.01. 23:30", []string{"16.01. 17:00 - 17.01. 01:00", "17.01. 17:00 - 18.01. 01:00"}},
		"ClosedDay":       {berlin, []airtime.Opening{{Weekday: 6, Open: 480, Close: 1200}}, "16.01. 12:00", []string{"17.01. 07:00 - 17.01. 19:00"}},
		"ClosedDays":      {berlin, []airtime.Opening{{Weekday: 2, Open: 480, Close: 1200}}, "16.01. 12:00", []string{}},
		"OpensAtTheEnd":   {berlin, []airtime.Opening{{Weekday: 6, Open: 1200, Close: 1260}}, "16.01. 12:00", []string{}},
		"ClosedJustNow":   {berlin, daily(8*60, 13*60), "16.01. 12:00", []string{"17.01. 07:00 - 17.01. 12:00"}},
		"ClosedThisHour":  {berlin, daily(8*60, 13*60+1), "16.01. 12:30", []string{"16.01. 07:00 - 16.01. 12:01", "17.01. 07:00 - 17.01. 12:01"}},
		"Sunday":          {berlin, []airtime.Opening{{Weekday: 7, Open: 0, Close: 1440}}, "18.01. 12:00", []string{"17.01. 23:00 - 18.01. 23:00"}},
		"QuartersOfHours": {"Asia/Kathmandu", daily(8*60, 20*60), "16.01. 12:00", []string{"16.01. 02:15 - 16.01. 14:15", "17.01. 02:15 - 17.01. 14:15"}},
	} {
		t.Run(name, func(t *testing.T) {
			periods, err := schedule(c.zone, c.hours, at(t, c.now))
			require.NoError(t, err)
			got := []string{}
			for _, p := range periods {
				require.Equal(t, []int{0, 1}, p.Loop)
				got = append(got, p.From.Format("02.01. 15:04")+" - "+p.Until.Format("02.01. 15:04"))
			}
			require.Equal(t, c.want, got)
			hour := at(t, c.now).Truncate(time.Hour)
			again, err := schedule(c.zone, c.hours, hour)
			require.NoError(t, err)
			require.Equal(t, periods, again, "those of an hour are the same")
		})
	}
	_, err := schedule("Nowhere/Else", daily(1, 2), time.Now())
	require.ErrorContains(t, err, "Nowhere/Else")
}

// TestScheduleIsTheHours goes through a year in several zones minute by minute: a
// schedule says what the clock on the wall does.
func TestScheduleIsTheHours(t *testing.T) {
	const seed = 11
	random := rand.New(rand.NewPCG(seed, seed))
	for _, zone := range []string{"Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Casablanca", "Pacific/Chatham"} {
		location, err := time.LoadLocation(zone)
		require.NoError(t, err)
		var hours []airtime.Opening
		for day := 1; day <= 7; day++ {
			from := random.IntN(12 * 60)
			hours = append(hours, airtime.Opening{Weekday: day, Open: from, Close: from + 1 + random.IntN(6*60)}, airtime.Opening{Weekday: day, Open: 20 * 60, Close: 24 * 60})
		}
		for now := at(t, "01.01. 00:00"); now.Year() == 2026; now = now.Add(29 * time.Hour) {
			periods, err := schedule(zone, hours, now)
			require.NoError(t, err)
			for n, p := range periods {
				require.True(t, p.From.Before(p.Until))
				require.True(t, n == 0 || periods[n-1].Until.Before(p.From), "periods are not in order, or touch")
			}
			for minute := now; minute.Before(now.Add(30 * time.Hour)); minute = minute.Add(7 * time.Minute) {
				on := false
				for _, p := range periods {
					on = on || !minute.Before(p.From) && minute.Before(p.Until)
				}
				wall := minute.In(location)
				want := false
				for _, h := range hours {
					of := wall.Hour()*60 + wall.Minute()
					want = want || h.Weekday%7 == int(wall.Weekday()) && h.Open <= of && of < h.Close
				}
				require.Equal(t, want, on, "%s in %s", wall, zone)
			}
		}
	}
}

// TestLargestSchedule: the most hours that a device may have make a message that fits
// into a packet.
func TestLargestSchedule(t *testing.T) {
	const most, items = 42, 100
	var hours []airtime.Opening
	for n := range most {
		hours = append(hours, airtime.Opening{Weekday: 1 + n%2, Open: n / 2 * 60, Close: n/2*60 + 30})
	}
	p := Programme{Playlist: Playlist{DeviceID: "dev_01ARZ3NDEKTSV4RRFFQ69G5FAV", Version: 1}, TimeZone: "Europe/Berlin", Hours: hours}
	for n := range items {
		p.Items = append(p.Items, Item{
			CreativeID: fmt.Sprint("creative-", n), URL: "/v1/media/" + strings.Repeat("0", 64), SHA256: strings.Repeat("0", 64), MediaType: "image/png", DurationMS: 10000,
		})
	}
	d, err := p.document(at(t, "11.01. 23:00")) // a Monday begins in Berlin
	require.NoError(t, err)
	require.Less(t, len(d.text), 64<<10)
	var read struct {
		Schedule []Period `json:"schedule"`
	}
	require.NoError(t, json.Unmarshal(d.text, &read))
	require.Greater(t, len(read.Schedule), 20)
	require.LessOrEqual(t, len(read.Schedule), MaxPeriods)
	require.Len(t, read.Schedule[0].Loop, items)
}
