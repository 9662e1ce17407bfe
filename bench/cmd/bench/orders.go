package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/marquee-ads/marquee/bench/yardstick"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
)

const (
	ordersName = "orders" // to -only
	// bookingCallers book at a time: as many as the service has connections to its
	// database, which is its default.
	bookingCallers = 10
	// soldDisplays are for sale, each with soldSlots slots in a loop.
	soldDisplays = 10_000
	soldSlots    = 10
	// Who books one after the other what nobody else wants has displaysEach displays,
	// and who wants the same as others contendedDisplays, and days of which nothing was
	// sold before.
	displaysEach      = 2_900
	contendedDisplays = 5
	firstDay          = 30
	contendedDays     = 600
	// What is booked before is from soldFrom days ahead on.
	soldFrom = 200
	// searchPage is how many displays a page of a search has.
	searchPage = 50
	// bookingsWithin bounds all that is measured of orders.
	bookingsWithin = 12 * time.Minute
)

// storedBookings are how many bookings there are when others are made.
func storedBookings() []int { return []int{1_000, 100_000, 1_000_000} }

// orders is what is measured of the order service.
type orders struct {
	b      *bench
	rounds int
	each   time.Duration

	door            *door
	buyers          []*bookingBuyer
	db              *pgx.Conn // the order service's
	folder          string    // Postgres's
	postgres, proxy *process
	service         *process
	direct, gateway orderv1.OrderServiceClient
	pgbench         *pgbench // nil where there is none
	bookings        map[bool]string
	search          string
	next            map[string]*atomic.Int64 // what each row books next

	stored   []*series // of bookings, one after the other
	searched *series
}

// bookingBuyer is somebody with a wallet.
type bookingBuyer struct {
	name, organisation, token string
}

// wantsOrders says whether -only leaves what is measured of orders.
func (b *bench) wantsOrders() bool { return strings.Contains(ordersName, b.only) }

// measureOrders has the order service sell air time, directly and behind the gateway,
// and pgbench execute the same statements. It returns the section about it.
func (b *bench) measureOrders(ctx context.Context, rounds int, each time.Duration) (string, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, bookingsWithin, fmt.Errorf("the measurement of orders takes longer than %s", bookingsWithin))
	defer cancel()
	o := &orders{b: b, rounds: rounds, each: each, next: map[string]*atomic.Int64{}, bookings: map[bool]string{}}
	for _, step := range []func(context.Context) error{o.start, o.signUp, o.putDisplays, o.recordBookings, o.measure, o.measureSearch} {
		if err := step(ctx); err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = fmt.Errorf("%w: %w", cause, err)
			}
			return "", err
		}
	}
	fmt.Fprintf(os.Stderr, "measured orders in %s\n", time.Since(began).Round(time.Second))
	return o.report(), nil
}

// start starts the order service in the mesh, with a Postgres as production has it
// behind the mesh proxy, and NATS, to which it tells what it sells.
func (o *orders) start(ctx context.Context) error {
	fmt.Fprintln(os.Stderr, "starting Postgres, NATS and the order service")
	b := o.b
	if _, err := b.accountService(ctx); err != nil {
		return err
	}
	postgres, socket, err := b.startPostgres(ctx, "order")
	if err != nil {
		return err
	}
	o.postgres, o.folder = postgres, filepath.Join(b.dir, "order-postgres")
	if o.proxy, err = b.startService("order mesh proxy", "meshproxyd", "--name=order-db", "--register=always", "--upstream=unix:"+filepath.Join(socket, ".s.PGSQL.5432")); err != nil {
		return err
	}
	_, nats, _, err := b.startNATS(ctx, "order-nats", "")
	if err != nil {
		return err
	}
	ports, err := freeAddresses(1)
	if err != nil {
		return err
	}
	// The displays are put into the table: nobody else knows them.
	o.service, err = b.startService("order", "orderd", "--register=always", "--database-password-file="+b.passwordFile(), fmt.Sprint("--database-max-conns=", bookingCallers),
		"--nats-address="+nats, "--admin-listen="+ports[0], "--sync-every=24h", "--payments=test")
	if err != nil {
		return err
	}
	if err := until(ctx, "the order service is ready", func(ctx context.Context) error {
		_, err := fetch(ctx, "http://"+ports[0]+"/readyz")
		return err
	}); err != nil {
		return fmt.Errorf("%w; it said\n%s", err, o.service.lastWords())
	}
	database := url.URL{Scheme: "postgres", Path: "/order", RawQuery: url.Values{"host": {socket}, "user": {"order"}}.Encode()}
	config, err := pgx.ParseConfig(database.String())
	if err != nil {
		return fmt.Errorf("connect to the database of orders: %w", err)
	}
	config.Password = password
	if o.db, err = pgx.ConnectConfig(ctx, config); err != nil {
		return fmt.Errorf("connect to the database of orders: %w", err)
	}
	b.closers = append(b.closers, func() {
		closing, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		o.db.Close(closing)
	})
	binaries, err := b.postgresBinaries(ctx)
	if err != nil {
		return err
	}
	if program := findPgbench(binaries); program == "" {
		fmt.Fprintln(os.Stderr, noPgbench)
	} else {
		o.pgbench = &pgbench{program: program, env: []string{"PGHOST=" + socket, "PGUSER=order", "PGPASSWORD=" + password}, database: "order", dir: b.dir}
	}

	meshed, hangUp, err := yardstick.DialMesh(ctx, b.cluster.Consul(), "bench", "order")
	if err != nil {
		return err
	}
	b.closers = append(b.closers, hangUp)
	front, err := grpc.NewClient(b.gatewayGRPC, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("connect to the gateway: %w", err)
	}
	b.closers = append(b.closers, func() { front.Close() })
	o.direct, o.gateway = orderv1.NewOrderServiceClient(meshed), orderv1.NewOrderServiceClient(front)
	return nil
}

// noPgbench is what is printed instead of its figures.
const noPgbench = "pgbench is not installed: its figures are left out (apt-get install -y --no-install-recommends postgresql-client has it)"

// signUp makes the buyers, each with more money than it can spend.
func (o *orders) signUp(ctx context.Context) error {
	o.door = o.b.newDoor("buyers", o.b.gatewayHTTP, &atomic.Int64{})
	for i := range bookingCallers {
		buyer := &bookingBuyer{name: fmt.Sprintf("buyer-%d", i)}
		if err := until(ctx, "an account can be made", func(ctx context.Context) error { return o.door.signUp(ctx, buyer.name) }); err != nil {
			return err
		}
		if err := o.logIn(ctx, buyer); err != nil {
			return err
		}
		var made struct {
			Organisation struct{ OrganisationID string }
		}
		if err := o.door.call(ctx, http.MethodPost, "/v1/organisations", buyer.token, map[string]string{"requestId": "organisation", "name": "Buyer", "kind": "ORGANISATION_KIND_ADVERTISER"}, &made); err != nil {
			return fmt.Errorf("make an organisation: %w", err)
		}
		buyer.organisation = made.Organisation.OrganisationID
		if err := o.logIn(ctx, buyer); err != nil {
			return err
		}
		const money = 1_000_000_000_000
		if err := until(ctx, "the gateway knows the order service", func(ctx context.Context) error {
			return o.door.call(ctx, http.MethodPost, "/v1/organisations/"+buyer.organisation+"/wallet:topUp", buyer.token, map[string]any{
				"requestId": "the-top-up", "amount": map[string]any{"amountMinor": money, "currency": "EUR"}, "paymentMethod": "test",
			}, &struct{}{})
		}); err != nil {
			return err
		}
		o.buyers = append(o.buyers, buyer)
	}
	return nil
}

func (o *orders) logIn(ctx context.Context, buyer *bookingBuyer) (err error) {
	if buyer.token, err = o.door.logIn(ctx, buyer.name); err != nil {
		return fmt.Errorf("log a buyer in: %w", err)
	}
	return nil
}

// displayOf is the id of a display by its number, from 1.
func displayOf(number int64) string { return fmt.Sprintf("dev_%026d", number) }

const displayExpression = "'dev_' || lpad(%s::text, 26, '0')"

// putDisplays stores what is for sale, as it is when each device has been told of, and
// wallets for pgbench's clients. The displays are always on, and at UTC.
func (o *orders) putDisplays(ctx context.Context) error {
	for _, statement := range []string{
		`INSERT INTO displays OVERRIDING SYSTEM VALUE
SELECT ` + fmt.Sprintf(displayExpression, "n") + `, n, 'org_seller', 'Display ' || n, 48 + n % 100 * 0.01, 11 + n / 100 * 0.01, '', 'transit.airports.gates', 1080, 1920,
    6 * ` + fmt.Sprint(soldSlots) + `, 6, 1, 'EUR', 'UTC', '[]', 1, true, now()
FROM generate_series(1, ` + fmt.Sprint(soldDisplays) + `) AS n`,
		`INSERT INTO ledger_accounts SELECT 'wallet:org_' || lpad(n::text, 26, '0') || ':EUR', 'WALLET', 'org_' || lpad(n::text, 26, '0'), 'EUR', 1000000000000
FROM generate_series(0, ` + fmt.Sprint(bookingCallers-1) + `) AS n`,
		"INSERT INTO ledger_accounts VALUES ('wallet:org_before:EUR', 'WALLET', 'org_before', 'EUR', 1000000000000)",
		"ANALYZE",
	} {
		if _, err := o.db.Exec(ctx, statement); err != nil {
			return fmt.Errorf("put displays up for sale: %w", err)
		}
	}
	return nil
}

// booked is what one booking is of, by its number: other numbers are of others.
type booked struct {
	buyer, display, day int64
}

// place is what the row's n-th booking is of. Rows have displays of their own; row is
// its number, from 0.
func place(row, n int64, contended bool) booked {
	if contended {
		return booked{display: soldDisplays - 100*(row+1) + n%contendedDisplays, day: firstDay + n/contendedDisplays%contendedDays}
	}
	return booked{buyer: n % bookingCallers, display: 1 + row*displaysEach + n%displaysEach, day: firstDay + n/displaysEach%(soldFrom-firstDay)}
}

func dayOf(ahead int64) string {
	return time.Now().UTC().AddDate(0, 0, int(ahead)).Format(time.DateOnly)
}

// book holds and books one slot for a day.
func (o *orders) book(ctx context.Context, client orderv1.OrderServiceClient, id string, where booked) (*orderv1.Order, error) {
	buyer := o.buyers[where.buyer]
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+buyer.token)
	day := dayOf(where.day)
	held, err := client.HoldOrder(ctx, &orderv1.HoldOrderRequest{
		OrganisationId: buyer.organisation, RequestId: holdPrefix + id, Title: "Bench", LifetimeSeconds: 1800,
		Lines: []*orderv1.LineRequest{{DeviceId: displayOf(where.display), Flight: &orderv1.Flight{StartDate: day, EndDate: day}, Slots: 1}},
	})
	if err != nil {
		return nil, err
	}
	paid, err := client.BookOrder(ctx, &orderv1.BookOrderRequest{OrganisationId: buyer.organisation, OrderId: held.GetOrder().GetOrderId(), RequestId: bookPrefix + id})
	if err == nil && paid.GetOrder().GetState() != orderv1.OrderState_ORDER_STATE_BOOKED {
		err = fmt.Errorf("%s is %s", paid.GetOrder().GetOrderId(), paid.GetOrder().GetState())
	}
	return paid.GetOrder(), err
}

const (
	holdPrefix = "bench-hold-"
	bookPrefix = "bench-book-"
)

// recordBookings has the service book once and search once, and makes scripts of what
// its database executed for them.
func (o *orders) recordBookings(ctx context.Context) error {
	if o.pgbench == nil {
		return nil
	}
	// Of a slot that is not the first, so that it is told from its display.
	recorded := booked{display: soldDisplays, day: firstDay}
	if _, err := o.book(ctx, o.direct, "before", recorded); err != nil {
		return fmt.Errorf("book: %w", err)
	}
	var sold *orderv1.Order
	all, err := record(ctx, o.postgres, o.folder, func(ctx context.Context) (err error) {
		if sold, err = o.book(ctx, o.direct, "recorded", recorded); err != nil {
			return err
		}
		return o.find(ctx)
	})
	if err != nil {
		return fmt.Errorf("record a booking: %w", err)
	}
	var bookings, searches []transaction
	for _, t := range all {
		switch {
		case t.mentions(sold.GetOrderId()) && len(t) > 1 && (t.mentions(holdPrefix+"recorded") || t.mentions(bookPrefix+"recorded")):
			bookings = append(bookings, t)
		case len(t) == 1 && (strings.Contains(t[0].text, "-- name: SearchDisplays") || strings.Contains(t[0].text, "-- name: TakenCounts")):
			searches = append(searches, t)
		}
	}
	if len(bookings) != 2 || len(searches) == 0 {
		return fmt.Errorf("of a hold and a booking, %d transactions were recorded, and %d statements of a search", len(bookings), len(searches))
	}
	const id = `[0-7][0-9A-HJKMNP-TV-Z]{25}`
	number := func(prefix string) func(string) string {
		return func(string) string { return "'" + prefix + "' || lpad(:n::text, 26, '0')" }
	}
	of := func(expression string) func(string) string { return func(string) string { return expression } }
	// Longer ones first: what is found in a value is no part of another number.
	whole := func(n int64) *regexp.Regexp { return regexp.MustCompile(fmt.Sprintf(`\b%d\b`, n)) }
	day := func(after int64) func(string) string {
		return of(fmt.Sprintf("to_char(current_date + :day::int + %d, 'YYYY-MM-DD')", after))
	}
	vary := []varying{
		{regexp.MustCompile(sold.GetOrderId()), number("ord_")},
		{regexp.MustCompile("lin_" + id), number("lin_")},
		{regexp.MustCompile("ent_" + id), number("ent_")},
		{regexp.MustCompile(displayOf(soldDisplays)), of(fmt.Sprintf(displayExpression, ":display"))},
		{regexp.MustCompile(o.buyers[0].organisation), of("'org_' || lpad(:buyer::text, 26, '0')")},
		{regexp.MustCompile(holdPrefix + "recorded"), of("'" + holdPrefix + "' || :n::text")},
		{regexp.MustCompile(bookPrefix + "recorded"), of("'" + bookPrefix + "' || :n::text")},
		{regexp.MustCompile(`^` + id + `$`), number("")},
		{whole(soldDisplays*4096 + 1), of("(:display::bigint * 4096 + :slot::bigint)::text")},
		{whole(soldDisplays * 4096), of("(:display::bigint * 4096)::text")},
		{whole((soldDisplays + 1) * 4096), of("((:display::bigint + 1) * 4096)::text")},
		{whole(soldDisplays), of(":display::text")},
		{regexp.MustCompile(dayOf(firstDay)), day(0)},
		{regexp.MustCompile(dayOf(firstDay + 1)), day(1)},
	}
	for _, contended := range []bool{false, true} {
		text, err := script(ctx, o.db, bookingVariables(contended), bookings, vary)
		if err != nil {
			return err
		}
		if o.bookings[contended], err = o.write(fmt.Sprintf("booking-%t.sql", contended), text); err != nil {
			return err
		}
	}
	text, err := script(ctx, o.db, "", searches, nil)
	if err != nil {
		return err
	}
	o.search, err = o.write("search.sql", text)
	return err
}

func (o *orders) write(name, text string) (string, error) {
	file := filepath.Join(o.b.dir, name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return "", fmt.Errorf("write a script for pgbench: %w", err)
	}
	return file, nil
}

// bookingVariables are place in pgbench's terms: n counts on, from a number that is
// each client's own.
func bookingVariables(contended bool) string {
	ids := 7_000_000_000
	if contended {
		ids += 1_000_000_000
	}
	text := fmt.Sprintf(`\set i :i + 1
\set m :first + :i * %d + :client_id
\set n %d + :m
`, bookingCallers, ids)
	if contended {
		return text + fmt.Sprintf(`\set buyer 0
\set display %d + :m %% %d
\set day %d + (:m / %[2]d) %% %[4]d
\set slot (:m / %d) %% %d
`, soldDisplays-100*pgbenchRow-100, contendedDisplays, firstDay, contendedDays, contendedDisplays*contendedDays, soldSlots)
	}
	return text + fmt.Sprintf(`\set buyer :client_id
\set display %d + :m %% %d
\set day %d + (:m / %[2]d) %% %[4]d
\set slot 0
`, 1+pgbenchRow*displaysEach, displaysEach, firstDay, soldFrom-firstDay)
}

const (
	directRow = iota
	gatewayRow
	pgbenchRow
)

// measure books with more and more that is booked before.
func (o *orders) measure(ctx context.Context) error {
	stored := 0
	for _, want := range storedBookings() {
		began := time.Now()
		if err := o.fill(ctx, stored, want); err != nil {
			return err
		}
		stored = want
		fmt.Fprintf(os.Stderr, "%d bookings stored in %s\n", want, time.Since(began).Round(time.Millisecond))
		s := &series{rounds: o.rounds, each: o.each, warmUp: time.Second, rows: o.rows(want), before: func(ctx context.Context) error {
			for _, buyer := range o.buyers {
				if err := o.logIn(ctx, buyer); err != nil {
					return err
				}
			}
			return nil
		}}
		if err := s.measure(ctx); err != nil {
			return err
		}
		o.stored = append(o.stored, s)
	}
	return o.check(ctx)
}

func (o *orders) rows(stored int) (rows []*row) {
	through := []*process{o.service, o.proxy, o.postgres}
	for _, contended := range []bool{false, true} {
		method := "apart"
		if contended {
			method = "contended"
		}
		add := func(by string, processes ...*process) (*row, *atomic.Int64) {
			r := &row{name: fmt.Sprintf("%d %s", stored, method), method: method, by: by, callers: bookingCallers, processes: processes}
			if o.next[method+by] == nil {
				o.next[method+by] = &atomic.Int64{}
			}
			rows = append(rows, r)
			return r, o.next[method+by]
		}
		if o.pgbench != nil {
			r, counter := add("pgbench", o.postgres)
			r.load = func(ctx context.Context, d time.Duration) (calls, error) {
				first := counter.Load()
				made, err := o.pgbench.run(ctx, o.bookings[contended], bookingCallers, d, map[string]int64{"first": first, "i": -1})
				// The clients are not equally fast.
				counter.Add(int64(2*len(made.took)/bookingCallers+10) * bookingCallers)
				return made, err
			}
		}
		for _, way := range []struct {
			by        string
			number    int64
			client    orderv1.OrderServiceClient
			processes []*process
		}{{"directly", directRow, o.direct, through}, {"gateway", gatewayRow, o.gateway, append([]*process{o.b.gateway}, through...)}} {
			r, counter := add(way.by, way.processes...)
			r.call = func(ctx context.Context) error {
				n := counter.Add(1) - 1
				_, err := o.book(ctx, way.client, fmt.Sprintf("%s-%s-%d", method, way.by, n), place(way.number, n, contended))
				return err
			}
		}
	}
	return rows
}

// fill makes bookings as they are after the first ones: of one slot on a day each, by
// one buyer.
func (o *orders) fill(ctx context.Context, from, to int) error {
	each := `
FROM (
    SELECT n, '0' || lpad(n::text, 25, '0') AS id, ` + fmt.Sprintf(displayExpression, "(1 + n % "+fmt.Sprint(3*displaysEach)+")") + ` AS device_id,
        1 + n % ` + fmt.Sprint(3*displaysEach) + ` AS display, n / ` + fmt.Sprint(3*displaysEach) + ` % ` + fmt.Sprint(soldSlots) + ` AS slot,
        current_date + ` + fmt.Sprint(soldFrom) + ` + (n / ` + fmt.Sprint(3*displaysEach*soldSlots) + `)::integer AS day
    FROM generate_series($1::bigint, $2::bigint) AS n
) AS b`
	times := "tstzmultirange(tstzrange(day::timestamptz, day::timestamptz + interval '1 day'))"
	const plays, price = 1440, 1440
	for _, statement := range []string{
		`INSERT INTO orders (order_id, organisation_id, title, state, price_minor, refunded_minor, currency, line_count, create_time, hold_expire_time, book_time, end_time)
SELECT 'ord_' || id, 'org_before', 'Before', 'BOOKED', ` + fmt.Sprint(price) + `, 0, 'EUR', 1, now(), now(), now(), day::timestamptz + interval '1 day'` + each,
		`INSERT INTO lines (line_id, order_id, line_number, device_id, owner_id, start_date, end_date, dayparts, slots, loop_seconds, slot_seconds, time_zone,
    start_time, end_time, times, plays, price_minor, refunded_minor, earned_minor, booked, shown_version, showing_number, revision)
SELECT 'lin_' || id, 'ord_' || id, 0, device_id, 'org_seller', day, day, '[]', ARRAY[slot::integer], 60, 6, 'UTC',
    day::timestamptz, day::timestamptz + interval '1 day', ` + times + `, ` + fmt.Sprint(plays) + `, ` + fmt.Sprint(price) + `, 0, 0, true, 0, 0, 1` + each,
		`INSERT INTO reservations (line_id, place, times) SELECT 'lin_' || id, int8range(display * 4096 + slot, display * 4096 + slot + 1), ` + times + each,
		`INSERT INTO ledger_accounts SELECT 'order:ord_' || id, 'ORDER', '', 'EUR', ` + fmt.Sprint(price) + each,
		`INSERT INTO ledger_entries (entry_id, from_account, to_account, currency, amount_minor, kind, order_id, line_id, reference, create_time)
SELECT 'ent_' || id, 'wallet:org_before:EUR', 'order:ord_' || id, 'EUR', ` + fmt.Sprint(price) + `, 'BOOKING', 'ord_' || id, '', '', now()` + each,
	} {
		if _, err := o.db.Exec(ctx, statement, from, to-1); err != nil {
			return fmt.Errorf("store %d bookings: %w", to, err)
		}
	}
	if _, err := o.db.Exec(ctx, "ANALYZE"); err != nil {
		return fmt.Errorf("analyse the tables: %w", err)
	}
	return nil
}

// check makes sure that what was measured was done: every booking has its order, its
// slot and its payment, and what pgbench made is as what the service made.
func (o *orders) check(ctx context.Context) error {
	var booked, kept, paid int64
	if err := o.db.QueryRow(ctx, `SELECT
    (SELECT count(*) FROM orders WHERE state = 'BOOKED'),
    (SELECT count(*) FROM reservations WHERE hold_expire_time IS NULL),
    (SELECT count(*) FROM ledger_entries WHERE kind = 'BOOKING')`).Scan(&booked, &kept, &paid); err != nil {
		return fmt.Errorf("count what was booked: %w", err)
	}
	made := int64(0)
	for _, s := range o.stored {
		for _, r := range s.rows {
			for _, one := range r.samples {
				made += int64(one.rate * s.each.Seconds() * 0.9)
			}
		}
	}
	if booked != kept || booked != paid || booked < made+int64(storedBookings()[len(storedBookings())-1]) {
		return fmt.Errorf("%d orders are booked, with %d slots and %d payments, and %d were made at least", booked, kept, paid, made)
	}
	return nil
}

// find searches for what is free in a week.
func (o *orders) find(ctx context.Context) error {
	buyer := o.buyers[0]
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+buyer.token)
	found, err := o.direct.SearchAvailability(ctx, &orderv1.SearchAvailabilityRequest{
		OrganisationId: buyer.organisation, Flight: &orderv1.Flight{StartDate: dayOf(soldFrom), EndDate: dayOf(soldFrom + 6)}, Slots: 1, PageSize: searchPage,
		VenueTypes: []string{"transit"}, MinWidthPx: 1000, Orientation: orderv1.Orientation_ORIENTATION_PORTRAIT, IncludeFull: true,
		Area: &orderv1.Area{South: 40, West: 0, North: 60, East: 20},
	})
	if err == nil && len(found.GetDisplays()) != searchPage {
		err = fmt.Errorf("%d displays are found", len(found.GetDisplays()))
	}
	return err
}

// measureSearch searches among all that is booked by now: one caller.
func (o *orders) measureSearch(ctx context.Context) error {
	for _, buyer := range o.buyers[:1] {
		if err := o.logIn(ctx, buyer); err != nil {
			return err
		}
	}
	rows := []*row{{by: "directly", callers: 1, processes: []*process{o.service, o.proxy, o.postgres}, call: o.find}}
	if o.pgbench != nil {
		rows = append(rows, &row{by: "pgbench", callers: 1, processes: []*process{o.postgres}, load: func(ctx context.Context, d time.Duration) (calls, error) {
			return o.pgbench.run(ctx, o.search, 1, d, nil)
		}})
	}
	o.searched = &series{rows: rows, rounds: o.rounds, each: o.each, warmUp: time.Second}
	return o.searched.measure(ctx)
}
