package order_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/platform/paging"
	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/postgres/postgrestest"
)

// inMarch is a search of all displays for days of March.
func inMarch(first, last int) order.Search {
	return order.Search{StartDate: fmt.Sprintf("2026-03-%02d", first), EndDate: fmt.Sprintf("2026-03-%02d", last)}
}

// search is all pages of a search, of a size, by the displays' ids.
func (m *market) search(t *testing.T, wanted order.Search, size int) (ids []string, found map[string]order.Availability) {
	t.Helper()
	found = map[string]order.Availability{}
	for page := (paging.Page{Size: size}); ; {
		some, next, err := m.SearchAvailability(t.Context(), wanted, page)
		require.NoError(t, err)
		if size > 0 {
			require.LessOrEqual(t, len(some), size)
		}
		for _, a := range some {
			ids = append(ids, a.Display.DeviceID)
			found[a.Display.DeviceID] = a
		}
		if next == "" {
			return ids, found
		}
		require.NotEqual(t, page.Token, next, "a page that leads to itself")
		page.Token = next
	}
}

func TestSearchFilters(t *testing.T) {
	m := newMarket(t)
	m.put(t, "dev_berlin")
	m.put(t, "dev_fiji", "latitude = -17.7, longitude = 178.1, venue_type = 'transit.airports.gates', width_px = 1080, height_px = 1920, time_zone = 'Pacific/Fiji'")
	m.put(t, "dev_samoa", "latitude = -13.8, longitude = -171.8, venue_type = 'transit_hub', width_px = 800, height_px = 800, time_zone = 'Pacific/Apia', price_minor = 100, currency = 'USD'")
	m.put(t, "dev_unclaimed", "playable = false")
	m.put(t, "dev_zone", "time_zone = 'Mars/Olympus'")
	m.put(t, "dev_dear", "price_minor = 900000000000")
	for name, c := range map[string]struct {
		filter order.DisplayFilter
		want   []string
	}{
		"All":               {order.DisplayFilter{}, []string{"dev_berlin", "dev_fiji", "dev_samoa"}},
		"Area":              {order.DisplayFilter{Area: &order.Area{South: 52, West: 13, North: 53, East: 14}}, []string{"dev_berlin"}},
		"AreaAcross180":     {order.DisplayFilter{Area: &order.Area{South: -20, West: 170, North: -10, East: -170}}, []string{"dev_fiji", "dev_samoa"}},
		"AreaNotAcross180":  {order.DisplayFilter{Area: &order.Area{South: -20, West: -170, North: -10, East: 170}}, nil},
		"AreaOfOnePoint":    {order.DisplayFilter{Area: &order.Area{South: 52.5, West: 13.4, North: 52.5, East: 13.4}}, []string{"dev_berlin"}},
		"VenueAndBelow":     {order.DisplayFilter{VenueTypes: []string{"transit"}}, []string{"dev_berlin", "dev_fiji"}},
		"VenueBelow":        {order.DisplayFilter{VenueTypes: []string{"transit.airports", "retail"}}, []string{"dev_fiji"}},
		"Landscape":         {order.DisplayFilter{Orientation: order.Landscape}, []string{"dev_berlin", "dev_samoa"}},
		"Portrait":          {order.DisplayFilter{Orientation: order.Portrait}, []string{"dev_fiji"}},
		"Screen":            {order.DisplayFilter{MinWidthPX: 1080, MinHeightPX: 1080}, []string{"dev_berlin", "dev_fiji"}},
		"Price":             {order.DisplayFilter{MaxSlotPrice: &order.Money{Minor: 250, Currency: "EUR"}}, []string{"dev_berlin", "dev_fiji"}},
		"PriceBelow":        {order.DisplayFilter{MaxSlotPrice: &order.Money{Minor: 249, Currency: "EUR"}}, nil},
		"PriceOtherwise":    {order.DisplayFilter{MaxSlotPrice: &order.Money{Minor: 100, Currency: "USD"}}, []string{"dev_samoa"}},
		"IDs":               {order.DisplayFilter{IDs: []string{"dev_samoa", "dev_unclaimed", "dev_nobody", "dev_berlin"}}, []string{"dev_berlin", "dev_samoa"}},
		"IDsAndOrientation": {order.DisplayFilter{IDs: []string{"dev_samoa", "dev_fiji"}, Orientation: order.Portrait}, []string{"dev_fiji"}},
	} {
		t.Run(name, func(t *testing.T) {
			wanted := inMarch(10, 10)
			wanted.Filter = c.filter
			ids, _ := m.search(t, wanted, 0)
			require.Equal(t, c.want, ids)
		})
	}
}

func TestSearchFreeSlots(t *testing.T) {
	m := newMarket(t)
	m.put(t, "dev_one")
	m.put(t, "dev_two")
	m.fund(t, buyer, order.Money{Minor: 10_000_000, Currency: "EUR"})
	free := func(t *testing.T, wanted order.Search) map[string]int {
		t.Helper()
		wanted.IncludeFull = true
		_, found := m.search(t, wanted, 0)
		slots := map[string]int{}
		for id, a := range found {
			slots[id] = a.FreeSlots
		}
		return slots
	}
	require.Equal(t, map[string]int{"dev_one": 6, "dev_two": 6}, free(t, inMarch(10, 12)))

	request := slotOn("dev_one", 11, 11)
	request.Slots = 4
	held := m.held(t, buyer, request)
	require.Equal(t, map[string]int{"dev_one": 2, "dev_two": 6}, free(t, inMarch(10, 12)))
	require.Equal(t, map[string]int{"dev_one": 6, "dev_two": 6}, free(t, inMarch(12, 12)), "another day")
	wanted := inMarch(10, 12)
	wanted.Slots = 3
	ids, found := m.search(t, wanted, 0)
	require.Equal(t, []string{"dev_two"}, ids, "fewer than wanted")
	require.Equal(t, int64(3*3*1440), found["dev_two"].Plays)
	require.Equal(t, order.Money{Minor: 3 * 3 * 1440 * 250, Currency: "EUR"}, found["dev_two"].Price)

	t.Run("Dayparts", func(t *testing.T) {
		morning, evening := inMarch(20, 20), inMarch(20, 20)
		morning.Dayparts = []airtime.Opening{{Weekday: 5, Open: 360, Close: 720}}
		evening.Dayparts = []airtime.Opening{{Weekday: 5, Open: 720, Close: 1440}}
		request := slotOn("dev_two", 20, 20)
		request.Slots, request.Dayparts = 6, morning.Dayparts
		o := m.held(t, buyer, request)
		require.Equal(t, 0, free(t, morning)["dev_two"])
		require.Equal(t, 6, free(t, evening)["dev_two"])
		require.Equal(t, 0, free(t, inMarch(20, 20))["dev_two"])
		_, err := m.cancel(t, o)
		require.NoError(t, err)
		require.Equal(t, 6, free(t, morning)["dev_two"], "given back")
	})
	t.Run("ShorterLoop", func(t *testing.T) {
		m.exec(t, "UPDATE displays SET loop_seconds = 30 WHERE device_id = 'dev_one'")
		require.Equal(t, 0, free(t, inMarch(11, 11))["dev_one"], "what was sold beyond the loop takes nothing from it")
		m.exec(t, "UPDATE displays SET loop_seconds = 60 WHERE device_id = 'dev_one'")
	})
	t.Run("ExpiredHold", func(t *testing.T) {
		m.exec(t, "UPDATE orders SET hold_expire_time = now() WHERE order_id = $1", held.ID)
		m.exec(t, "UPDATE reservations SET hold_expire_time = now()")
		require.Equal(t, 4, get[int](t, m, "SELECT count(*)::int FROM reservations"), "nothing has swept them")
		require.Equal(t, 6, free(t, inMarch(11, 11))["dev_one"])
	})
	t.Run("Booked", func(t *testing.T) {
		m.booked(t, m.held(t, buyer, request))
		require.Equal(t, 2, free(t, inMarch(11, 11))["dev_one"])
		require.Equal(t, 2, free(t, inMarch(1+10, 31))["dev_one"])
	})
	t.Run("MoreThanALoopHas", func(t *testing.T) {
		wanted := inMarch(20, 20)
		wanted.Slots = 7
		ids, _ := m.search(t, wanted, 0)
		require.Empty(t, ids)
	})
	t.Run("AsHeld", func(t *testing.T) {
		// What is found can be held, for that price, and nothing more.
		wanted := inMarch(2, 31)
		wanted.Slots = 2
		_, found := m.search(t, wanted, 0)
		request := slotOn("dev_one", 2, 31)
		request.Slots = 2
		o := m.held(t, another, request)
		require.Equal(t, found["dev_one"].Price, o.Price)
		require.Equal(t, found["dev_one"].Plays, o.Lines[0].Plays)
		require.Equal(t, 2, found["dev_one"].FreeSlots)
		_, err := m.hold(t, another, slotOn("dev_one", 2, 31))
		refused(t, err, order.ErrSlotTaken, "lines[0].slots")
	})
}

// Flights are by the calendar, and dayparts by the clock, at each display.
func TestSearchTimes(t *testing.T) {
	m := newMarket(t)
	m.put(t, "dev_berlin")
	m.put(t, "dev_tokyo", "time_zone = 'Asia/Tokyo'")
	m.put(t, "dev_evenings", `hours = '[{"weekday": 7, "open": 1080, "close": 1440}]'`)
	for name, c := range map[string]struct {
		start, end string
		dayparts   []airtime.Opening
		want       map[string]int64 // plays
	}{
		"Day":                {"2026-03-15", "2026-03-15", nil, map[string]int64{"dev_berlin": 1440, "dev_tokyo": 1440, "dev_evenings": 360}},
		"ClockSkipsAnHour":   {"2026-03-29", "2026-03-29", nil, map[string]int64{"dev_berlin": 23 * 60, "dev_tokyo": 1440, "dev_evenings": 360}},
		"ClockShowsItTwice":  {"2026-10-25", "2026-10-25", nil, map[string]int64{"dev_berlin": 25 * 60, "dev_tokyo": 1440, "dev_evenings": 360}},
		"SkippedDaypart":     {"2026-03-29", "2026-03-29", []airtime.Opening{{Weekday: 7, Open: 120, Close: 180}}, map[string]int64{"dev_tokyo": 60}},
		"DaypartTwice":       {"2026-10-25", "2026-10-25", []airtime.Opening{{Weekday: 7, Open: 120, Close: 180}}, map[string]int64{"dev_berlin": 120, "dev_tokyo": 60}},
		"NoSuchWeekday":      {"2026-03-16", "2026-03-21", []airtime.Opening{{Weekday: 7, Open: 0, Close: 1440}}, map[string]int64{}},
		"ShorterThanALoop":   {"2026-03-15", "2026-03-15", []airtime.Opening{{Weekday: 7, Open: 1079, Close: 1081}}, map[string]int64{"dev_berlin": 2, "dev_tokyo": 2, "dev_evenings": 1}},
		"WhatIsPast":         {"2026-03-02", "2026-03-02", nil, map[string]int64{"dev_berlin": 13*60 - 1, "dev_tokyo": 5*60 - 1}},
		"YesterdaySomewhere": {"2026-03-03", "2026-03-03", nil, map[string]int64{"dev_berlin": 1440, "dev_tokyo": 1440}},
		"AYear":              {"2026-03-03", "2027-03-03", []airtime.Opening{{Weekday: 1, Open: 480, Close: 540}}, map[string]int64{"dev_berlin": 52 * 60, "dev_tokyo": 52 * 60}},
	} {
		t.Run(name, func(t *testing.T) {
			_, found := m.search(t, order.Search{StartDate: c.start, EndDate: c.end, Dayparts: c.dayparts}, 0)
			plays := map[string]int64{}
			for id, a := range found {
				plays[id] = a.Plays
				require.Equal(t, a.Plays*250, a.Price.Minor)
			}
			require.Equal(t, c.want, plays)
		})
	}

	t.Run("LocalDaypartsDoNotMeet", func(t *testing.T) {
		nine := []airtime.Opening{{Weekday: 2, Open: 540, Close: 600}}
		for _, id := range []string{"dev_berlin", "dev_tokyo"} {
			request := slotOn(id, 10, 10)
			request.Slots, request.Dayparts = 6, nine
			m.held(t, buyer, request)
		}
		wanted := inMarch(10, 10)
		wanted.Dayparts = nine
		ids, _ := m.search(t, wanted, 0)
		require.Empty(t, ids)
		// At 9 in Berlin it is 17 in Tokyo.
		wanted.Dayparts = []airtime.Opening{{Weekday: 2, Open: 17 * 60, Close: 18 * 60}}
		ids, _ = m.search(t, wanted, 0)
		require.Equal(t, []string{"dev_berlin", "dev_tokyo"}, ids)
	})
	t.Run("AfterMidnightInOnePlace", func(t *testing.T) {
		m.set(time.Date(2026, 3, 10, 16, 0, 0, 0, time.UTC)) // the 11th in Tokyo
		ids, _ := m.search(t, inMarch(10, 12), 0)
		require.Equal(t, []string{"dev_berlin"}, ids)
	})
}

func TestSearchPages(t *testing.T) {
	m := newMarket(t)
	var want []string
	for n := range 11 {
		id := fmt.Sprintf("dev_%02d", n)
		m.put(t, id)
		if n%3 == 1 {
			request := slotOn(id, 10, 10)
			request.Slots = 6
			m.held(t, buyer, request)
			continue
		}
		want = append(want, id)
	}
	for _, size := range []int{0, 1, 2, 3, 7, 8, 500} {
		ids, _ := m.search(t, inMarch(10, 10), size)
		require.Equal(t, want, ids, "pages of %d", size)
	}

	t.Run("BoundedWork", func(t *testing.T) {
		m.exec(t, `INSERT INTO displays OVERRIDING SYSTEM VALUE SELECT (d).* FROM (
			SELECT jsonb_populate_record(o, jsonb_build_object('device_id', 'dev_' || to_char(n, 'FM00000'), 'display_number', 100000 + n, 'loop_seconds', 10)) AS d
			FROM displays AS o, generate_series(20000, 24500) AS n WHERE o.device_id = 'dev_00') AS made`)
		wanted := inMarch(10, 10)
		wanted.Slots, wanted.Filter.MaxSlotPrice = 2, &order.Money{Minor: 250, Currency: "EUR"}
		page, pages, found := paging.Page{Size: 10, Token: ""}, 0, 0
		for {
			some, next, err := m.SearchAvailability(t.Context(), wanted, page)
			require.NoError(t, err)
			pages, found = pages+1, found+len(some)
			if page.Token = next; next == "" {
				break
			}
		}
		require.Equal(t, len(want), found)
		require.Equal(t, 3, pages, "4508 displays, of which 4501 have no two slots: 2000 are looked at for a page")
	})
	t.Run("ManyTimes", func(t *testing.T) {
		// Every display has hours of its own, and the search so many dayparts that one call
		// cannot work all of them out.
		m.exec(t, `UPDATE displays SET loop_seconds = 60, playable = device_id < 'dev_20200',
			hours = jsonb_build_array(jsonb_build_object('weekday', 1, 'open', 0, 'close', 1440), jsonb_build_object('weekday', 2, 'open', 0, 'close', 1440),
				jsonb_build_object('weekday', 3, 'open', 0, 'close', 1440), jsonb_build_object('weekday', 4, 'open', 0, 'close', 1000 + display_number % 400))`)
		wanted := order.Search{StartDate: "2026-04-01", EndDate: "2027-03-31"}
		for part := range 42 {
			wanted.Dayparts = append(wanted.Dayparts, airtime.Opening{Weekday: 1 + part%7, Open: 200 * (part / 7), Close: 200*(part/7) + 100})
		}
		some, next, err := m.SearchAvailability(t.Context(), wanted, paging.Page{Size: 500})
		require.NoError(t, err)
		require.NotEmpty(t, next)
		require.Less(t, len(some), 150)
		ids, _ := m.search(t, wanted, 500)
		require.Len(t, ids, 200+11)
	})
}

func TestSearchRefuses(t *testing.T) {
	m := newMarket(t)
	for name, c := range map[string]struct {
		change func(*order.Search)
		path   string
	}{
		"ErrNoDate":    {func(s *order.Search) { s.StartDate = "2026-02-30" }, "flight.start_date"},
		"ErrBackwards": {func(s *order.Search) { s.EndDate = "2026-03-09" }, "flight.end_date"},
		"ErrTooLong":   {func(s *order.Search) { s.EndDate = "2027-03-11" }, "flight.end_date"},
		"ErrPast":      {func(s *order.Search) { s.StartDate = "2026-02-28" }, "flight.start_date"},
		"ErrTooFar":    {func(s *order.Search) { s.StartDate, s.EndDate = "2028-03-06", "2028-03-06" }, "flight.start_date"},
		"ErrDaypartsMeet": {func(s *order.Search) {
			s.Dayparts = []airtime.Opening{{Weekday: 1, Close: 60}, {Weekday: 1, Open: 59, Close: 120}}
		}, "dayparts"},
		"ErrDaypartNowhere": {func(s *order.Search) { s.Dayparts = []airtime.Opening{{Weekday: 1, Open: 60, Close: 60}} }, "dayparts"},
		"ErrArea":           {func(s *order.Search) { s.Filter.Area = &order.Area{South: 1, North: 0} }, "area.north"},
		"ErrSlots":          {func(s *order.Search) { s.Slots = order.MaxSlots + 1 }, "slots"},
	} {
		t.Run(name, func(t *testing.T) {
			wanted := inMarch(10, 10)
			c.change(&wanted)
			_, _, err := m.SearchAvailability(t.Context(), wanted, paging.Page{})
			refused(t, err, order.ErrSearch, c.path)
		})
	}
	for _, token := range []string{"?", "YWJj"} {
		_, _, err := m.SearchAvailability(t.Context(), inMarch(10, 10), paging.Page{Token: token})
		refused(t, err, paging.ErrTokenInvalid, "page_token")
	}
}

// What searches take on 10,000 displays with 200,000 reservations is printed. The
// bounds are far above it, and far below what reading all reservations takes.
func TestSearchMany(t *testing.T) {
	if testing.Short() {
		t.Skip("it makes 200,000 reservations")
	}
	store, db := postgrestest.On(t, &pg)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	conn, err := db.Pool().Acquire(ctx)
	require.NoError(t, err)
	defer conn.Release()
	began := time.Now()
	for _, sql := range []string{
		`SET statement_timeout = '5min'`,
		`INSERT INTO displays (device_id, organisation_id, name, latitude, longitude, address, venue_type, width_px, height_px,
			loop_seconds, slot_seconds, price_minor, currency, time_zone, hours, revision, playable, update_time)
		SELECT 'dev_' || lpad(n::text, 26, '0'), 'org_', n, 47 + n % 80 / 10.0, 6 + n % 90 / 10.0, '', 'transit', 1920, 1080, 60, 10, 250, 'EUR',
			(ARRAY['Europe/Berlin', 'Europe/London', 'America/New_York', 'Asia/Tokyo'])[1 + n % 4],
			CASE WHEN n % 3 = 0 THEN '[]' ELSE jsonb_build_array(jsonb_build_object('weekday', 1 + n % 7, 'open', 300, 'close', 1440)) END, 1, true, now()
		FROM generate_series(1, 10000) AS n`,
		`INSERT INTO orders (order_id, organisation_id, title, state, price_minor, refunded_minor, currency, line_count, create_time, hold_expire_time, book_time, end_time)
		VALUES ('ord_01ARZ3NDEKTSV4RRFFQ69G5FAV', 'org_', '', 'BOOKED', 0, 0, 'EUR', 1, now(), now(), now(), now())`,
		`INSERT INTO lines (line_id, order_id, line_number, device_id, owner_id, start_date, end_date, dayparts, slots, loop_seconds, slot_seconds, time_zone,
			start_time, end_time, times, plays, price_minor, refunded_minor, earned_minor, booked, shown_version, showing_number, revision)
		SELECT 'lin_' || lpad(week::text, 26, '0'), 'ord_01ARZ3NDEKTSV4RRFFQ69G5FAV', week, 'dev_' || lpad('1', 26, '0'), 'org_', now(), now(), '[]', '{0}', 60, 10, 'UTC',
			now(), now() + interval '1 day', '{}', 0, 0, 0, 0, true, 0, 0, 0
		FROM generate_series(1, 10) AS week`,
		// Every second week from the first of April, in the afternoons of its days, a third
		// of the slots. The index is made when they are there, which is sooner done.
		`ALTER TABLE reservations DROP CONSTRAINT reservations_no_double_sale`,
		`INSERT INTO reservations (line_id, place, times)
		SELECT 'lin_' || lpad(w.week::text, 26, '0'), int8range(d.display_number * 4096 + s.slot, d.display_number * 4096 + s.slot + 1), w.times
		FROM (
			SELECT week, range_agg(tstzrange(day, day + interval '6 hours')) AS times
			FROM generate_series(1, 10) AS week, LATERAL (
				SELECT timestamptz '2026-04-01 12:00Z' + make_interval(days => 14 * (week - 1) + day) AS day FROM generate_series(0, 6) AS day) AS days
			GROUP BY week) AS w, displays AS d, generate_series(0, 1) AS s(slot)`,
		`ALTER TABLE reservations ADD CONSTRAINT reservations_no_double_sale EXCLUDE USING gist (place WITH &&, times WITH &&)`,
		`ANALYZE`,
	} {
		_, err := conn.Exec(ctx, sql)
		require.NoError(t, err, sql)
	}
	t.Logf("made in %s", time.Since(began).Round(time.Millisecond))

	now := time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC)
	market := order.New(store, order.Outside{}, func() time.Time { return now }, rand.Reader)
	measure := func(name string, most time.Duration, wanted order.Search, size int) {
		var took []time.Duration
		for range 20 {
			began := time.Now()
			found, _, err := market.SearchAvailability(ctx, wanted, paging.Page{Size: size})
			require.NoError(t, err)
			took = append(took, time.Since(began))
			for _, a := range found {
				require.Contains(t, []int{4, 6}, a.FreeSlots)
			}
		}
		slices.Sort(took)
		t.Logf("%-40s p50 %8s, max %8s", name, took[10].Round(10*time.Microsecond), took[19].Round(10*time.Microsecond))
		require.Less(t, took[10], most, name)
	}
	week := order.Search{StartDate: "2026-04-06", EndDate: "2026-04-12"}
	for day := 1; day <= 5; day++ {
		week.Dayparts = append(week.Dayparts, airtime.Opening{Weekday: day, Open: 600, Close: 1200})
	}
	area := week
	area.Filter.Area = &order.Area{South: 50, West: 8, North: 50.2, East: 9}
	full := order.Search{StartDate: "2026-04-15", EndDate: "2026-04-21", Slots: 5}
	year := order.Search{StartDate: "2026-04-01", EndDate: "2027-03-31", Dayparts: week.Dayparts}
	measure("a page of 50, a week", 2*time.Second, week, 50)
	measure("a page of 500, a week", 4*time.Second, week, 500)
	measure("a page of 50, in an area", 2*time.Second, area, 50)
	measure("a page of 50, a year", 2*time.Second, year, 50)
	measure("2000 displays of which none has enough", 8*time.Second, full, 50)
	none, next, err := market.SearchAvailability(ctx, full, paging.Page{})
	require.NoError(t, err)
	require.Empty(t, none)
	require.NotEmpty(t, next)
}
