package order_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/platform/database"
	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/services/order"
)

func TestHoldOrder(t *testing.T) {
	m := newMarket(t)
	m.put(t, "dev_one")
	m.put(t, "dev_two", "slot_seconds = 20", "price_minor = 100", `hours = '[{"weekday": 2, "open": 480, "close": 540}]'`)
	most := order.Money{Minor: 3 * 1440 * 2 * 250, Currency: "EUR"}
	one, two := slotOn("dev_one", 10, 12), slotOn("dev_two", 9, 15)
	one.Slots, one.MaxPrice = 2, &most
	two.Dayparts = []airtime.Opening{{Weekday: 3, Open: 0, Close: 60}, {Weekday: 2, Open: 510, Close: 600}}
	before := get[time.Time](t, m, "SELECT now()")
	o, err := m.HoldOrder(t.Context(), ada, "request-a", order.HoldRequest{OrganisationID: buyer, Title: "Spring", Lines: []order.LineRequest{one, two}})
	require.NoError(t, err)

	require.Equal(t, order.Held, o.State)
	require.Equal(t, "Spring", o.Title)
	require.Equal(t, 2, o.LineCount)
	require.Equal(t, order.Money{Minor: most.Minor + 30*100, Currency: "EUR"}, o.Price)
	require.WithinRange(t, o.HoldExpireTime, before.Add(order.DefaultHold), before.Add(order.DefaultHold+time.Minute))
	require.Equal(t, []int{0, 1}, o.Lines[0].Slots)
	require.Equal(t, int64(3*1440*2), o.Lines[0].Plays)
	require.Equal(t, most.Minor, o.Lines[0].PriceMinor)
	require.Equal(t, owner, o.Lines[0].OwnerID)
	require.Equal(t, time.Date(2026, 3, 9, 23, 0, 0, 0, time.UTC), o.Lines[0].Start())
	require.Equal(t, time.Date(2026, 3, 12, 23, 0, 0, 0, time.UTC), o.Lines[0].End())
	require.Equal(t, []int{0}, o.Lines[1].Slots)
	require.Equal(t, []airtime.Range{{
		From: time.Date(2026, 3, 10, 7, 30, 0, 0, time.UTC), Until: time.Date(2026, 3, 10, 8, 0, 0, 0, time.UTC),
	}}, o.Lines[1].Times)
	require.Equal(t, []airtime.Opening{{Weekday: 2, Open: 510, Close: 600}, {Weekday: 3, Open: 0, Close: 60}}, o.Lines[1].Dayparts)
	require.Equal(t, o.Lines[0].End(), o.EndTime)
	require.Equal(t, o, m.find(t, o))

	t.Run("TheNextGetsOtherSlots", func(t *testing.T) {
		next := m.held(t, another, slotOn("dev_one", 12, 14))
		require.Equal(t, []int{2}, next.Lines[0].Slots)
	})
	t.Run("SlotsAreSharedAtOtherTimes", func(t *testing.T) {
		mornings, evenings := slotOn("dev_one", 20, 24), slotOn("dev_one", 20, 24)
		for day := 1; day <= 7; day++ {
			mornings.Dayparts = append(mornings.Dayparts, airtime.Opening{Weekday: day, Open: 0, Close: 720})
			evenings.Dayparts = append(evenings.Dayparts, airtime.Opening{Weekday: day, Open: 720, Close: 1440})
		}
		mornings.Slots, evenings.Slots = 6, 6
		require.Equal(t, []int{0, 1, 2, 3, 4, 5}, m.held(t, buyer, mornings).Lines[0].Slots)
		require.Equal(t, []int{0, 1, 2, 3, 4, 5}, m.held(t, another, evenings).Lines[0].Slots)
		_, err := m.hold(t, another, slotOn("dev_one", 24, 25))
		refused(t, err, order.ErrSlotTaken, "lines[0].slots")
	})
	t.Run("LinesOfOneDisplay", func(t *testing.T) {
		o := m.held(t, another, slotOn("dev_one", 30, 30), slotOn("dev_one", 31, 31))
		require.Equal(t, [][]int{{0}, {0}}, [][]int{o.Lines[0].Slots, o.Lines[1].Slots})
		require.Less(t, o.Lines[0].ID, o.Lines[1].ID)
	})
	t.Run("OfWhatHasBegunTheRest", func(t *testing.T) {
		o := m.held(t, buyer, slotOn("dev_one", 2, 2))
		require.Equal(t, time.Date(2026, 3, 2, 10, 0, 1, 0, time.UTC), o.Lines[0].Start())
		require.Equal(t, int64(13*60-1), o.Lines[0].Plays)
	})
	t.Run("Repeat", func(t *testing.T) {
		wanted := order.HoldRequest{OrganisationID: buyer, Title: "Spring", Lines: []order.LineRequest{one, two}}
		again, err := m.HoldOrder(t.Context(), ada, "request-a", wanted)
		require.NoError(t, err)
		require.Equal(t, o, again)
		wanted.Title = "Summer"
		_, err = m.HoldOrder(t.Context(), ada, "request-a", wanted)
		refused(t, err, order.ErrRequestIDReused, "request_id")
		other, err := m.HoldOrder(t.Context(), "acc_eve", "request-a", order.HoldRequest{OrganisationID: buyer, Lines: []order.LineRequest{slotOn("dev_one", 29, 29)}})
		require.NoError(t, err)
		require.NotEqual(t, o.ID, other.ID, "request ids are the caller's own")
	})
	t.Run("OfAnotherOrganisation", func(t *testing.T) {
		_, err := m.FindOrder(t.Context(), another, o.ID)
		require.ErrorIs(t, err, order.ErrNotFound)
		_, err = m.BookOrder(t.Context(), ada, m.requestID(), another, o.ID)
		require.ErrorIs(t, err, order.ErrNotFound)
		_, err = m.CancelOrder(t.Context(), ada, m.requestID(), another, o.ID)
		require.ErrorIs(t, err, order.ErrNotFound)
	})
}

// TestHoldOrderAcrossClockChanges counts plays on days of 23 and 25 hours.
func TestHoldOrderAcrossClockChanges(t *testing.T) {
	m := newMarket(t)
	m.put(t, "dev_one")
	sunday := func(open, closes int) []airtime.Opening {
		return []airtime.Opening{{Weekday: 7, Open: open, Close: closes}}
	}
	for name, c := range map[string]struct {
		date     string
		dayparts []airtime.Opening
		minutes  int64
	}{
		"ADayBefore":       {"2026-03-28", nil, 1440},
		"Spring":           {"2026-03-29", nil, 1380},
		"SpringAround":     {"2026-03-29", sunday(90, 210), 60},
		"SpringHalfInIt":   {"2026-03-29", sunday(150, 240), 60},
		"Autumn":           {"2026-10-25", nil, 1500},
		"AutumnTwice":      {"2026-10-25", sunday(120, 180), 120},
		"AutumnHalfTwice":  {"2026-10-25", sunday(150, 180), 60},
		"AutumnAndAfter":   {"2026-10-25", sunday(120, 240), 180},
		"AutumnAWeekLater": {"2026-11-01", sunday(120, 180), 60},
	} {
		t.Run(name, func(t *testing.T) {
			o := m.held(t, buyer, order.LineRequest{DeviceID: "dev_one", StartDate: c.date, EndDate: c.date, Dayparts: c.dayparts, Slots: 1})
			require.Equal(t, c.minutes, o.Lines[0].Plays)
			require.Equal(t, c.minutes*250, o.Price.Minor)
		})
	}
	t.Run("NeverOn", func(t *testing.T) {
		_, err := m.hold(t, buyer, order.LineRequest{DeviceID: "dev_one", StartDate: "2026-03-29", EndDate: "2026-03-29", Dayparts: sunday(120, 180), Slots: 1})
		refused(t, err, order.ErrOrder, "lines[0]")
	})
}

func TestHoldOrderRefuses(t *testing.T) {
	m := newMarket(t)
	m.put(t, "dev_one")
	m.put(t, "dev_off", "playable = false")
	m.put(t, "dev_gbp", "currency = 'GBP'")
	m.put(t, "dev_dear", "price_minor = 900000000000")
	m.put(t, "dev_dearest", "price_minor = 9000000000000000000")
	m.put(t, "dev_auckland", "time_zone = 'Pacific/Auckland'")
	m.put(t, "dev_honolulu", "time_zone = 'Pacific/Honolulu'")
	m.put(t, "dev_fine", "loop_seconds = 3600", "slot_seconds = 1")
	m.put(t, "dev_mondays", `hours = '[{"weekday": 1, "open": 0, "close": 1440}]'`)
	for _, c := range []struct {
		id, organisation, takenDown string
		duration                    int
	}{
		{"crv_" + buyer[4:], buyer, "NULL", 10_000},
		{"crv_" + another[4:], another, "NULL", 0},
		{"crv_01DZ5ZZKBKACTAV9WEVGEMMVRZ", buyer, "now()", 0},
		{"crv_01EZ5ZZKBKACTAV9WEVGEMMVRZ", buyer, "NULL", 11_000},
	} {
		m.exec(t, `INSERT INTO creatives (creative_id, organisation_id, title, version, create_time, take_down_time) VALUES ($1, $2, 'x', 1, now(), `+c.takenDown+`)`, c.id, c.organisation)
		m.exec(t, `INSERT INTO creative_versions (creative_id, version, sha256, media_type, width_px, height_px, duration_ms, thumbnail, create_time)
			VALUES ($1, 1, repeat('a', 64), 'video/mp4', 10, 10, $2, '', now())`, c.id, c.duration)
	}
	change := func(l order.LineRequest, with func(*order.LineRequest)) order.LineRequest {
		with(&l)
		return l
	}
	dates := func(first, last string) order.LineRequest {
		return order.LineRequest{DeviceID: "dev_one", StartDate: first, EndDate: last, Slots: 1}
	}
	good := slotOn("dev_one", 10, 10)
	times := func(weekday int) (list []airtime.Opening) {
		for n := range 6 {
			list = append(list, airtime.Opening{Weekday: weekday, Open: 200 * n, Close: 200*n + 100})
		}
		return list
	}
	var finest []airtime.Opening
	for day := 1; day <= 7; day++ {
		finest = append(finest, times(day)...)
	}
	for name, c := range map[string]struct {
		lines []order.LineRequest
		want  *fault.Error
		path  string
	}{
		"NoDay":            {[]order.LineRequest{dates("2026-02-30", "2026-03-10")}, order.ErrOrder, "lines[0].flight.start_date"},
		"NoLastDay":        {[]order.LineRequest{good, dates("2026-03-10", "2026-13-10")}, order.ErrOrder, "lines[1].flight.end_date"},
		"EndBeforeStart":   {[]order.LineRequest{dates("2026-03-10", "2026-03-09")}, order.ErrOrder, "lines[0].flight.end_date"},
		"TooLong":          {[]order.LineRequest{dates("2026-03-10", "2027-03-11")}, order.ErrOrder, "lines[0].flight.end_date"},
		"Yesterday":        {[]order.LineRequest{dates("2026-03-01", "2026-03-10")}, order.ErrOrder, "lines[0].flight.start_date"},
		"TooFarAhead":      {[]order.LineRequest{dates("2028-03-04", "2028-03-04")}, order.ErrOrder, "lines[0].flight.start_date"},
		"DaypartsOverlap":  {[]order.LineRequest{change(good, func(l *order.LineRequest) { l.Dayparts = append(times(2), times(2)[3]) })}, order.ErrOrder, "lines[0].dayparts"},
		"DaypartBackwards": {[]order.LineRequest{change(good, func(l *order.LineRequest) { l.Dayparts = []airtime.Opening{{Weekday: 2, Open: 10, Close: 10}} })}, order.ErrOrder, "lines[0].dayparts"},
		"DaypartsNotThen":  {[]order.LineRequest{change(good, func(l *order.LineRequest) { l.Dayparts = times(3) })}, order.ErrOrder, "lines[0]"},
		"DisplayIsOffThen": {[]order.LineRequest{good, slotOn("dev_mondays", 10, 15)}, order.ErrOrder, "lines[1]"},
		"NoSlots":          {[]order.LineRequest{change(good, func(l *order.LineRequest) { l.Slots = 0 })}, order.ErrOrder, "lines[0].slots"},
		"MoreThanALoopHas": {[]order.LineRequest{change(good, func(l *order.LineRequest) { l.Slots = 7 })}, order.ErrOrder, "lines[0].slots"},
		"LinesOverlap":     {[]order.LineRequest{slotOn("dev_one", 20, 20), slotOn("dev_one", 10, 12), slotOn("dev_one", 12, 13)}, order.ErrOrder, "lines[2]"},
		"LinesAreTheSame":  {[]order.LineRequest{good, good}, order.ErrOrder, "lines[1]"},
		"Currencies":       {[]order.LineRequest{good, slotOn("dev_gbp", 10, 10)}, order.ErrCurrenciesDiffer, "lines[1].device_id"},
		"TooDear":          {[]order.LineRequest{slotOn("dev_dear", 10, 10)}, order.ErrAmountTooLarge, "lines[0]"},
		"Overflow":         {[]order.LineRequest{slotOn("dev_dearest", 10, 10)}, order.ErrAmountTooLarge, "lines[0]"},
		"NoDisplay":        {[]order.LineRequest{good, slotOn("dev_none", 10, 10)}, order.ErrDisplayNotFound, "lines[1].device_id"},
		"NoPlayer":         {[]order.LineRequest{slotOn("dev_off", 10, 10)}, order.ErrDisplayNotFound, "lines[0].device_id"},
		"Price":            {[]order.LineRequest{change(good, func(l *order.LineRequest) { l.MaxPrice = &order.Money{Minor: 1440*250 - 1, Currency: "EUR"} })}, order.ErrPriceChanged, "lines[0].max_price"},
		"PriceElsewhere":   {[]order.LineRequest{change(good, func(l *order.LineRequest) { l.MaxPrice = &order.Money{Minor: 1440 * 250, Currency: "GBP"} })}, order.ErrPriceChanged, "lines[0].max_price"},
		"TooManySlots": {[]order.LineRequest{
			change(slotOn("dev_fine", 10, 10), func(l *order.LineRequest) { l.Slots = 3600 }), change(slotOn("dev_fine", 11, 11), func(l *order.LineRequest) { l.Slots = 3600 }),
			change(slotOn("dev_fine", 12, 12), func(l *order.LineRequest) { l.Slots = 3600 }),
		}, order.ErrOrder, "lines"},
		"TooManyTimes":          {[]order.LineRequest{change(dates("2026-03-10", "2026-12-31"), func(l *order.LineRequest) { l.DeviceID, l.Dayparts, l.Slots = "dev_fine", finest, 3600 })}, order.ErrOrder, "lines"},
		"CreativeOfAnother":     {[]order.LineRequest{change(good, func(l *order.LineRequest) { l.CreativeID = "crv_" + another[4:] })}, order.ErrCreativeNotFound, ""},
		"NoCreative":            {[]order.LineRequest{change(good, func(l *order.LineRequest) { l.CreativeID = "crv_01FZ5ZZKBKACTAV9WEVGEMMVRZ" })}, order.ErrCreativeNotFound, ""},
		"CreativeTakenDown":     {[]order.LineRequest{change(good, func(l *order.LineRequest) { l.CreativeID = "crv_01DZ5ZZKBKACTAV9WEVGEMMVRZ" })}, order.ErrCreativeTakenDown, ""},
		"CreativeLongerThanOne": {[]order.LineRequest{good, change(slotOn("dev_one", 11, 11), func(l *order.LineRequest) { l.CreativeID = "crv_01EZ5ZZKBKACTAV9WEVGEMMVRZ" })}, order.ErrCreativeDoesNotFit, "lines[1].creative_id"},
	} {
		t.Run(name, func(t *testing.T) {
			id := m.requestID()
			_, err := m.HoldOrder(t.Context(), ada, id, order.HoldRequest{OrganisationID: buyer, Lines: c.lines})
			refused(t, err, c.want, c.path)
			require.Zero(t, get[int](t, m, "SELECT count(*) FROM orders"))
			require.Zero(t, get[int](t, m, "SELECT count(*) FROM reservations"))
			require.Zero(t, get[int](t, m, "SELECT count(*) FROM requests WHERE request_id = $1", id), "it can be tried again")
		})
	}
	t.Run("PriceIsTold", func(t *testing.T) {
		_, err := m.hold(t, buyer, change(good, func(l *order.LineRequest) { l.MaxPrice = &order.Money{Minor: 1, Currency: "EUR"} }))
		f := refused(t, err, order.ErrPriceChanged, "lines[0].max_price")
		require.Equal(t, map[string]string{"line": "0", "amount_minor": "360000", "currency": "EUR"}, f.Meta)
	})
	// What is just possible.
	for name, l := range map[string]order.LineRequest{
		"AYear":          dates("2026-03-10", "2027-03-10"),
		"TwoYearsAhead":  dates("2028-03-03", "2028-03-03"),
		"Today":          dates("2026-03-02", "2026-03-02"),
		"TodayElsewhere": {DeviceID: "dev_honolulu", StartDate: "2026-03-02", EndDate: "2026-03-02", Slots: 1},
		"WithACreative":  change(slotOn("dev_one", 11, 11), func(l *order.LineRequest) { l.CreativeID = "crv_" + buyer[4:] }),
	} {
		t.Run(name, func(t *testing.T) {
			o := m.held(t, buyer, l)
			_, err := m.cancel(t, o)
			require.NoError(t, err)
		})
	}
	t.Run("DatesAreThoseAtTheDisplay", func(t *testing.T) {
		m.set(time.Date(2026, 3, 2, 13, 0, 0, 0, time.UTC)) // the 3rd in Auckland
		_, err := m.hold(t, buyer, slotOn("dev_auckland", 2, 4))
		refused(t, err, order.ErrOrder, "lines[0].flight.start_date")
		m.set(time.Date(2026, 3, 3, 8, 59, 59, 0, time.UTC)) // the 2nd in Honolulu
		o := m.held(t, buyer, slotOn("dev_honolulu", 2, 2))
		require.Equal(t, int64(60), o.Lines[0].Plays)
	})
}

func TestHoldOrderSlotTaken(t *testing.T) {
	m := newMarket(t)
	m.put(t, "dev_one")
	m.put(t, "dev_two", "slot_seconds = 20")
	all := slotOn("dev_one", 10, 12)
	all.Slots = 4
	m.held(t, another, all, slotOn("dev_two", 10, 12))

	one, two, three := slotOn("dev_one", 12, 14), slotOn("dev_one", 13, 14), slotOn("dev_two", 12, 12)
	one.StartDate, one.EndDate = "2026-03-12", "2026-03-12"
	one.Slots, two.Slots, three.Slots = 3, 6, 3
	_, err := m.hold(t, buyer, one, two, three)
	require.ErrorIs(t, err, order.ErrSlotTaken)
	f, _ := fault.From(err)
	require.Equal(t, map[string]string{"lines": "0,2", "free_slots": "2,2"}, f.Meta)
	require.Equal(t, []fault.Field{
		{Path: "lines[0].slots", Rule: "slots.free", Description: "2 of 6 slots are free during all of the line"},
		{Path: "lines[2].slots", Rule: "slots.free", Description: "2 of 3 slots are free during all of the line"},
	}, f.Fields)
	require.Equal(t, []order.State{}, m.states(t, buyer, ""))

	one.Slots, three.Slots = 2, 2
	o := m.held(t, buyer, one, two, three)
	require.Equal(t, []int{4, 5}, o.Lines[0].Slots)
	require.Equal(t, []int{0, 1, 2, 3, 4, 5}, o.Lines[1].Slots)
	require.Equal(t, []int{1, 2}, o.Lines[2].Slots)

	t.Run("CancelledAreFreeAtOnce", func(t *testing.T) {
		_, err := m.hold(t, another, slotOn("dev_one", 13, 13))
		refused(t, err, order.ErrSlotTaken, "lines[0].slots")
		cancelled, err := m.cancel(t, o)
		require.NoError(t, err)
		require.Equal(t, order.Cancelled, cancelled.State)
		require.Zero(t, cancelled.RefundedMinor)
		m.held(t, another, slotOn("dev_one", 13, 13))
	})
	t.Run("AShorterLoop", func(t *testing.T) {
		m.exec(t, "UPDATE displays SET loop_seconds = 50 WHERE device_id = 'dev_one'")
		_, err := m.hold(t, buyer, one)
		f := refused(t, err, order.ErrSlotTaken, "lines[0].slots")
		require.Equal(t, map[string]string{"lines": "0", "free_slots": "1"}, f.Meta)
	})
}

// TestHoldOrderAtItsBounds has orders that are as large as can be, from their hold to
// their cancellation.
func TestHoldOrderAtItsBounds(t *testing.T) {
	m := newMarket(t)
	m.fund(t, buyer, eur(order.MaxAmount))
	var long, fine []order.LineRequest
	for n := range 200 {
		id := fmt.Sprintf("dev_%03d", n)
		m.put(t, id, "loop_seconds = 60", "slot_seconds = 1", "price_minor = 1")
		l := order.LineRequest{DeviceID: id, StartDate: "2026-04-01", EndDate: "2027-04-01", Slots: order.MaxOrderSlots / 200}
		long = append(long, l)
		l.Slots = 1
		for day := 1; day <= 7 && n < 45; day++ {
			for part := range 6 {
				l.Dayparts = append(l.Dayparts, airtime.Opening{Weekday: day, Open: 200 * part, Close: 200*part + 100})
			}
		}
		if n < 45 {
			fine = append(fine, l)
		}
	}
	for name, lines := range map[string][]order.LineRequest{"Slots": long, "Times": fine} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			o := m.held(t, buyer, lines...)
			held := time.Since(began)
			o = m.booked(t, o)
			booked := time.Since(began) - held
			_, err := m.cancel(t, o)
			require.NoError(t, err)
			t.Logf("held within %v, booked within %v, cancelled within %v", held, booked, time.Since(began)-held-booked)
		})
	}
	t.Run("EveryConflictIsTold", func(t *testing.T) {
		for i := range long {
			long[i].Slots = 31
		}
		long = long[:150]
		m.held(t, another, long...)
		_, err := m.hold(t, buyer, long...)
		require.ErrorIs(t, err, order.ErrSlotTaken)
		f, _ := fault.From(err)
		require.Len(t, f.Fields, 20)
		require.Len(t, strings.Split(f.Meta["lines"], ","), 150)
		require.Equal(t, strings.Repeat("29,", 149)+"29", f.Meta["free_slots"])
	})
}

func TestHoldsAreBounded(t *testing.T) {
	m := newMarket(t)
	const at = 10
	for n := range at { // displays of their own: nothing else makes them wait for each other
		m.put(t, fmt.Sprintf("dev_%d", n), "loop_seconds = 3600", "slot_seconds = 1")
	}
	var (
		all  sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	for n := range at {
		all.Go(func() {
			for range 2 + order.MaxHolds/at {
				if _, err := m.hold(t, buyer, slotOn(fmt.Sprintf("dev_%d", n), 10, 10)); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			}
		})
	}
	all.Wait()
	require.Len(t, errs, 20)
	for _, err := range errs {
		require.ErrorIs(t, err, order.ErrTooManyHolds)
	}
	m.held(t, another, slotOn("dev_0", 10, 10))
	m.exec(t, "UPDATE orders SET hold_expire_time = now() WHERE order_id = (SELECT min(order_id) FROM orders WHERE organisation_id = $1)", buyer)
	m.held(t, buyer, slotOn("dev_1", 10, 10))
	_, err := m.hold(t, buyer, slotOn("dev_2", 10, 10))
	require.ErrorIs(t, err, order.ErrTooManyHolds)
}

// TestExpiredHold waits for a hold to end, as buyers do.
func TestExpiredHold(t *testing.T) {
	m := newMarket(t)
	m.put(t, "dev_one", "loop_seconds = 10")
	m.fund(t, buyer, order.Money{Minor: 1_000_000, Currency: "EUR"})
	o, err := m.HoldOrder(t.Context(), ada, m.requestID(), order.HoldRequest{
		OrganisationID: buyer, Lines: []order.LineRequest{slotOn("dev_one", 10, 10)}, Lifetime: time.Second,
	})
	require.NoError(t, err)
	_, err = m.hold(t, another, slotOn("dev_one", 10, 10))
	refused(t, err, order.ErrSlotTaken, "lines[0].slots")
	require.Equal(t, []order.State{order.Held}, m.states(t, buyer, order.Held))
	require.Eventually(t, func() bool { return m.find(t, o).State == order.Expired }, 10*time.Second, 10*time.Millisecond, "the hold does not expire")

	require.Equal(t, "HELD", get[string](t, m, "SELECT state FROM orders"), "nobody has swept")
	require.Equal(t, 1, get[int](t, m, "SELECT count(*) FROM reservations"))
	require.Equal(t, []order.State{order.Expired}, m.states(t, buyer, ""))
	require.Equal(t, []order.State{order.Expired}, m.states(t, buyer, order.Expired))
	require.Empty(t, m.states(t, buyer, order.Held))
	_, err = m.book(t, o)
	require.ErrorIs(t, err, order.ErrHoldExpired)
	_, err = m.cancel(t, o)
	require.ErrorIs(t, err, order.ErrState)
	next := m.held(t, another, slotOn("dev_one", 10, 10))

	n, err := m.store.Sweep(t.Context(), time.Unix(0, m.clock.Load()))
	require.NoError(t, err)
	require.Equal(t, int64(1), n, "the order: its reservation is gone")
	require.Equal(t, order.Expired, m.find(t, o).State)
	require.Equal(t, "EXPIRED", get[string](t, m, "SELECT state FROM orders WHERE organisation_id = $1", buyer))
	require.Equal(t, order.Held, m.find(t, next).State)
	_, err = m.book(t, o)
	require.ErrorIs(t, err, order.ErrHoldExpired)
	require.Equal(t, int64(1_000_000), m.balance(t, buyer))
}

func TestSweep(t *testing.T) {
	m := newMarket(t)
	m.put(t, "dev_one")
	m.fund(t, buyer, order.Money{Minor: 1_000_000, Currency: "EUR"})
	m.exec(t, "DELETE FROM requests")
	over, held, booked := m.held(t, buyer, slotOn("dev_one", 10, 10)), m.held(t, buyer, slotOn("dev_one", 10, 10)), m.held(t, buyer, slotOn("dev_one", 10, 10))
	m.booked(t, booked)
	m.exec(t, "UPDATE orders SET hold_expire_time = now() WHERE order_id <> $1", held.ID)
	m.exec(t, "UPDATE reservations SET hold_expire_time = now() WHERE line_id = $1", over.Lines[0].ID)
	now := time.Unix(0, m.clock.Load())
	tx, err := m.db.Pool().Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	for _, table := range []string{"orders", "reservations"} {
		_, err = tx.Exec(t.Context(), "SELECT FROM "+table+" FOR UPDATE")
		require.NoError(t, err)
	}
	n, err := m.store.Sweep(t.Context(), now)
	require.NoError(t, err, "it waits for nobody")
	require.Zero(t, n)
	require.NoError(t, tx.Rollback(t.Context()))
	n, err = m.store.Sweep(t.Context(), now)
	require.NoError(t, err)
	require.Equal(t, int64(2), n)
	require.Equal(t, []order.State{order.Booked, order.Held, order.Expired}, m.states(t, buyer, ""))
	require.Equal(t, 2, get[int](t, m, "SELECT count(*) FROM reservations"))
	n, err = m.store.Sweep(t.Context(), now.Add(order.RequestLifetime))
	require.NoError(t, err)
	require.Equal(t, int64(4), n, "the requests")
	n, err = m.store.Sweep(t.Context(), now)
	require.NoError(t, err)
	require.Zero(t, n)
}

// TestDoubleSaleIsImpossible goes past all code: the table itself refuses.
func TestDoubleSaleIsImpossible(t *testing.T) {
	m := newMarket(t)
	m.put(t, "dev_one")
	o := m.held(t, buyer, slotOn("dev_one", 10, 10), slotOn("dev_one", 11, 11), slotOn("dev_one", 15, 15))
	m.exec(t, "DELETE FROM reservations WHERE line_id = $1", o.Lines[2].ID)
	insert := func(line int, slot int, times string) error {
		_, err := m.db.Pool().Exec(t.Context(), `INSERT INTO reservations (line_id, place, times)
			SELECT $1, int8range(d.display_number * 4096 + $2, d.display_number * 4096 + $2 + 1), $3::tstzmultirange FROM displays AS d`, o.Lines[line].ID, slot, times)
		return err
	}
	const constraint = "reservations_no_double_sale"
	require.Equal(t, constraint, database.Violated(insert(2, 0, "{[2026-03-10 12:00Z,2026-03-10 12:01Z)}")))
	require.Equal(t, constraint, database.Violated(insert(2, 0, "{[2026-03-01 12:00Z,2026-03-02 12:01Z),[2026-03-11 22:59:59Z,2026-03-12 12:00Z)}")))
	require.NoError(t, insert(2, 1, "{[2026-03-10 12:00Z,2026-03-10 12:01Z)}"), "another slot")
	require.NoError(t, insert(0, 2, "{[2026-03-09 22:00Z,2026-03-09 23:00Z)}"))
	require.NoError(t, insert(1, 2, "{[2026-03-09 21:00Z,2026-03-09 22:00Z),[2026-03-09 23:00Z,2026-03-09 23:30Z)}"), "other times")
	m.exec(t, "DELETE FROM reservations")
}

func organisation(n int) string { return fmt.Sprintf("org_%026d", n) }

// TestContention has more buyers than there is air time, with lines in all orders.
func TestContention(t *testing.T) {
	m := newMarket(t)
	const buyers, tries = 40, 4
	displays := []string{"dev_one", "dev_two"}
	for _, d := range displays {
		m.put(t, d, "loop_seconds = 50", "price_minor = 1")
	}
	for n := range buyers {
		m.fund(t, organisation(n), order.Money{Minor: 100_000_000, Currency: "EUR"})
	}
	type sale struct {
		order.Order
		booked bool
	}
	var (
		all   sync.WaitGroup
		mu    sync.Mutex
		sold  []sale
		taken int
	)
	for n := range buyers {
		all.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(n)))
			for range tries {
				var lines []order.LineRequest
				for _, d := range displays {
					for day := 10; day < 13; day++ {
						if random.IntN(2) == 0 {
							l := slotOn(d, day, day)
							l.Slots = 1 + random.IntN(2)
							lines = append(lines, l)
						}
					}
				}
				if lines == nil {
					continue
				}
				random.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
				o, err := m.hold(t, organisation(n), lines...)
				if err != nil {
					f, known := fault.From(err)
					if !known || f.Reason != order.ErrSlotTaken.Reason || f.Meta["free_slots"] == "" || len(f.Fields) == 0 {
						t.Errorf("holding: %v", err)
					}
					mu.Lock()
					taken++
					mu.Unlock()
					continue
				}
				s := sale{Order: o, booked: random.IntN(2) == 0}
				if s.booked {
					if s.Order, err = m.book(t, o); err != nil {
						t.Errorf("booking: %v", err)
					}
				} else if random.IntN(2) == 0 {
					if _, err := m.cancel(t, o); err != nil {
						t.Errorf("cancelling: %v", err)
					}
					continue
				}
				mu.Lock()
				sold = append(sold, s)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	require.NotZero(t, taken, "there was enough for all")
	owners := map[string]string{}
	for _, s := range sold {
		for _, l := range s.Lines {
			for _, slot := range l.Slots {
				require.Less(t, slot, 5)
				place := fmt.Sprint(l.DeviceID, l.Flight, slot)
				require.Empty(t, owners[place], "%s is sold twice", place)
				owners[place] = s.ID
			}
		}
	}
	t.Logf("%d orders hold or have %d of 30 slots, and %d attempts came too late", len(sold), len(owners), taken)
	require.Equal(t, len(owners), get[int](t, m, "SELECT count(*) FROM reservations"))
	require.True(t, slices.ContainsFunc(sold, func(s sale) bool { return s.booked }))
	require.True(t, slices.ContainsFunc(sold, func(s sale) bool { return !s.booked }))
}
