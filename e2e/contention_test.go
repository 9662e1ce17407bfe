package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/marquee-ads/marquee/e2e/scenario"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
)

const (
	// buyersVariable says how many buyers TestContention has at once, and
	// attemptsVariable how often they try to buy, all together, for example 20000.
	buyersVariable   = "MARQUEE_E2E_BUYERS"
	buyersDefault    = 200
	attemptsVariable = "MARQUEE_E2E_ATTEMPTS"
	attemptsDefault  = 4000

	// What is sold: the slots of some displays on one day.
	contendedDisplays = 5
	contendedSlots    = 10
	// organisations are those of the buyers: several people buy for one.
	organisations = 20
	// settleWithin is for how long a buyer repeats a request that is neither done nor
	// refused, and callTimeout for how long it waits for one answer.
	settleWithin = 30 * time.Second
	callTimeout  = 10 * time.Second
)

// number is that of an environment variable.
func number(t *testing.T, variable string, otherwise int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err, variable)
	require.Positive(t, n, variable)
	return n
}

// market is where many want the same slots.
type market struct {
	seller   *scenario.Owner
	displays []string
	buyers   []*scenario.Owner
	toppedUp map[string]int64 // what each organisation paid in
	flight   *orderv1.Flight
	left     atomic.Int64 // attempts
	// creatives are what each organisation has shown on half of what it books; none
	// when it has nothing.
	creatives map[string]string
	// pace is how long a buyer waits between two attempts, on average.
	pace time.Duration

	mu    sync.Mutex
	sales []*scenario.Sale
	took  map[string][]time.Duration // by what was asked for
}

// halves are whole days and halves of them, which can share a slot.
func halves(n int) []*orderv1.Daypart {
	const noon, midnight = 12 * 60, 24 * 60
	var all []*orderv1.Daypart
	for weekday := int32(1); weekday <= 7; weekday++ {
		switch n % 3 {
		case 1:
			all = append(all, &orderv1.Daypart{Weekday: weekday, EndMinute: noon})
		case 2:
			all = append(all, &orderv1.Daypart{Weekday: weekday, StartMinute: noon, EndMinute: midnight})
		}
	}
	return all
}

// buying is one buyer's attempt under way.
type buying struct {
	*market
	who    *scenario.Owner
	random *rand.Rand
	id     string // that request_ids begin with
	sale   *scenario.Sale
}

// send makes a request until it is done or refused. Now and then it is
// made twice at once, or once more afterwards, as by a client that lost the answer.
func (b *buying) send(ctx context.Context, what string, in proto.Message, order func() (out proto.Message, id func() string)) scenario.Try {
	var mu sync.Mutex
	var try scenario.Try
	call := func(door scenario.Door) {
		out, id := order()
		answer := scenario.Answer{Sent: time.Now()}
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		answer.Err = b.who.Ask(ctx, door, in, out)
		answer.Got = time.Now()
		if answer.Err == nil {
			answer.OrderID = id()
		}
		mu.Lock()
		defer mu.Unlock()
		try = append(try, answer)
	}
	first := scenario.Door(b.random.IntN(2))
	var twice sync.WaitGroup
	if b.random.IntN(8) == 0 {
		twice.Go(func() { call(1 - first) })
	}
	call(first)
	twice.Wait()
	pause := 50 * time.Millisecond
	for began := time.Now(); !try.Settled() && time.Since(began) < settleWithin && ctx.Err() == nil; pause = min(2*pause, time.Second) {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		call(first)
	}
	if try.Outcome() == scenario.Done && b.random.IntN(8) == 0 {
		call(1 - first)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.took[what] = append(b.took[what], try[0].Got.Sub(try[0].Sent))
	return try
}

// hold asks for one or two lines on different displays.
func (b *buying) hold(ctx context.Context) {
	const longest = 3 // seconds
	request := &orderv1.HoldOrderRequest{RequestId: b.id + "-hold", LifetimeSeconds: 1 + b.random.Int32N(longest)}
	for _, display := range b.random.Perm(len(b.displays))[:1+b.random.IntN(2)] {
		slots := 1 + b.random.Int32N(2)
		b.sale.Slots = append(b.sale.Slots, slots)
		line := &orderv1.LineRequest{DeviceId: b.displays[display], Flight: b.flight, Slots: slots, Dayparts: halves(b.random.IntN(3))}
		if b.random.IntN(2) == 0 {
			line.CreativeId = b.creatives[b.who.Organisation]
		}
		request.Lines = append(request.Lines, line)
	}
	var mu sync.Mutex
	b.sale.Hold = b.send(ctx, "hold", request, func() (proto.Message, func() string) {
		var out orderv1.HoldOrderResponse
		return &out, func() string {
			mu.Lock()
			defer mu.Unlock()
			b.sale.Order = out.GetOrder()
			return out.GetOrder().GetOrderId()
		}
	})
}

func (b *buying) book(ctx context.Context) {
	b.sale.Book = b.send(ctx, "book", &orderv1.BookOrderRequest{OrderId: b.sale.Order.GetOrderId(), RequestId: b.id + "-book"}, func() (proto.Message, func() string) {
		var out orderv1.BookOrderResponse
		return &out, func() string { return out.GetOrder().GetOrderId() }
	})
}

func (b *buying) cancel(ctx context.Context) {
	b.sale.Cancel = b.send(ctx, "cancel", &orderv1.CancelOrderRequest{OrderId: b.sale.Order.GetOrderId(), RequestId: b.id + "-cancel"}, func() (proto.Message, func() string) {
		var out orderv1.CancelOrderResponse
		return &out, func() string { return out.GetOrder().GetOrderId() }
	})
}

// shop is what one buyer does until no attempt is left: it holds what it can get,
// forgets some of it, gives some back and books the rest, and when it gets nothing it
// cancels what it has.
func (m *market) shop(ctx context.Context, n int, seed uint64) {
	random := rand.New(rand.NewPCG(seed, uint64(n))) //nolint:gosec // no secret, and not negative
	who := m.buyers[n%len(m.buyers)]
	var have []*buying
	for i := 0; m.left.Add(-1) >= 0 && ctx.Err() == nil; i++ {
		if m.pace > 0 {
			time.Sleep(time.Duration(random.Int64N(int64(2 * m.pace))))
		}
		b := &buying{market: m, who: who, random: random, id: fmt.Sprintf("buyer-%d-%d", n, i), sale: &scenario.Sale{Organisation: who.Organisation}}
		b.hold(ctx)
		m.mu.Lock()
		m.sales = append(m.sales, b.sale)
		m.mu.Unlock()
		if b.sale.Hold.Outcome() != scenario.Done {
			if len(have) > 0 && random.IntN(2) == 0 {
				have[0].cancel(ctx)
				have = have[1:]
			}
			continue
		}
		switch chance := random.IntN(100); {
		case chance < 20: // it expires
		case chance < 35:
			b.cancel(ctx)
		default:
			b.book(ctx)
			if b.sale.Book.Outcome() == scenario.Done {
				have = append(have, b)
			}
		}
	}
}

// Many want few slots: they hold, forget, book, cancel and repeat themselves, and an
// instance of order dies meanwhile. Each slot is sold once, what was acknowledged is
// there and nothing else, and no money appears or vanishes.
func TestContention(t *testing.T) {
	people, attempts := number(t, buyersVariable, buyersDefault), number(t, attemptsVariable, attemptsDefault)
	ctx := begin(t, 4*time.Minute+time.Duration(attempts)*50*time.Millisecond)
	m := openMarket(t, ctx, openDoors(t, ctx))
	m.left.Store(int64(attempts))

	seed := uint64(time.Now().UnixNano()) //nolint:gosec // not negative
	began := time.Now()
	done := m.open(ctx, people, seed)
	scenario.Eventually(ctx, t, 10*time.Minute, "half of the attempts are made", func() error {
		if left := m.left.Load(); left > int64(attempts/2) {
			return fmt.Errorf("%d are left", left)
		}
		return nil
	})
	dead := kill(t, "orderd", 1)
	excluded, restored := recovery(t, ctx, "order", "orderd", 2, dead)
	select {
	case <-done:
	case <-ctx.Done():
		require.NoError(t, context.Cause(ctx), "%d attempts are left", m.left.Load())
	}
	t.Logf("killed 1 of 2 of order; excluded by Consul %s; both healthy again after %.1f s", excluded, restored.Seconds())
	m.report(t, time.Since(began))

	m.check(t, ctx, seed)
}

// open has people buy, until no attempt is left and the channel is closed.
func (m *market) open(ctx context.Context, people int, seed uint64) <-chan struct{} {
	var shopping sync.WaitGroup
	for n := range people {
		shopping.Go(func() { m.shop(ctx, n, seed) })
	}
	done := make(chan struct{})
	go func() { shopping.Wait(); close(done) }()
	return done
}

// check buys what is left, and requires that what all were told is what is.
func (m *market) check(t *testing.T, ctx context.Context, seed uint64) {
	t.Helper()
	m.sellOut(t, ctx)
	books, err := scenario.ReadBooks(ctx, m.seller, m.buyers)
	require.NoError(t, err)
	history := make([]scenario.Sale, len(m.sales))
	for i, sale := range m.sales {
		history[i] = *sale
	}
	require.Empty(t, scenario.CheckSales(history, books, m.toppedUp), "what is wrong with the sales, of seed %d", seed)
	checkSales(t, ctx)
}

// openMarket enrols the displays and signs the buyers up, through these doors.
func openMarket(t *testing.T, ctx context.Context, doors scenario.Doors) *market {
	t.Helper()
	// It begins in more than 72 hours, so that a cancellation refunds all.
	day := time.Now().AddDate(0, 0, 10).Format(time.DateOnly)
	m := &market{
		seller: scenario.NewOwner(ctx, t, doors), displays: make([]string, contendedDisplays), buyers: make([]*scenario.Owner, organisations),
		flight: &orderv1.Flight{StartDate: day, EndDate: day}, took: map[string][]time.Duration{}, toppedUp: map[string]int64{},
	}
	for i := range m.displays {
		settings := priced(1)
		settings["loopLengthSeconds"], settings["slotLengthSeconds"] = 6*contendedSlots, 6
		id, _, err := m.seller.Enrol(ctx, fmt.Sprintf("display-%d", i), settings)
		require.NoError(t, err)
		m.displays[i] = id
	}
	for i := range m.buyers {
		m.buyers[i] = scenario.NewAdvertiser(ctx, t, doors)
		money := int64(1_000_000_000)
		if i == len(m.buyers)-1 {
			money = 5_000 // it is soon spent
		}
		require.NoError(t, m.buyers[i].TopUp(ctx, "the-top-up", money, "EUR"))
		m.toppedUp[m.buyers[i].Organisation] = money
	}
	scenario.Eventually(ctx, t, 15*time.Second, "the displays are for sale", func() error {
		free, err := m.free(ctx)
		if err == nil && free != contendedDisplays*contendedSlots {
			err = fmt.Errorf("%d slots are", free)
		}
		return err
	})
	return m
}

// search is what is free all day.
func (m *market) search(ctx context.Context) ([]*orderv1.Availability, error) {
	var found orderv1.SearchAvailabilityResponse
	err := m.buyers[0].Ask(ctx, scenario.REST, &orderv1.SearchAvailabilityRequest{Flight: m.flight, Slots: 1, DeviceIds: m.displays, IncludeFull: true}, &found)
	return found.GetDisplays(), err
}

func (m *market) free(ctx context.Context) (slots int, err error) {
	found, err := m.search(ctx)
	for _, display := range found {
		slots += int(display.GetFreeSlots())
	}
	return slots, err
}

// report prints what happened, and requires that what should be tried was.
func (m *market) report(t *testing.T, lasted time.Duration) {
	t.Helper()
	counts := map[string]int{}
	count := func(what string, try scenario.Try) {
		switch try.Outcome() {
		case scenario.Done:
			counts[what]++
		case scenario.Denied:
			counts[what+" refused: "+scenario.Reason(try[0].Err)]++
		case scenario.Unknown:
			counts[what+" unknown: "+scenario.Reason(try[len(try)-1].Err)]++
		}
		for _, a := range try[min(1, len(try)):] {
			counts["repeats"]++
			if a.Err != nil && !scenario.Refused(a.Err) {
				counts["repeats without an answer: "+scenario.Reason(a.Err)]++
			}
		}
	}
	for _, s := range m.sales {
		count("held", s.Hold)
		count("booked", s.Book)
		count("cancelled", s.Cancel)
	}
	t.Logf("%d attempts in %.1f s: %v", len(m.sales), lasted.Seconds(), counts)
	for what, took := range m.took {
		slices.Sort(took)
		t.Logf("%s: %d, %.0f a second, p50 %s, p99 %s, longest %s", what, len(took), float64(len(took))/lasted.Seconds(),
			took[len(took)/2].Round(time.Millisecond), took[len(took)*99/100].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
	}
	for _, what := range []string{"held", "booked", "cancelled", "repeats", "held refused: SLOT_TAKEN"} {
		require.NotZero(t, counts[what], "%s: %v", what, counts)
	}
}

// sellOut waits until all holds have expired, and buys what is left: what nobody
// booked is in nobody's way.
func (m *market) sellOut(t *testing.T, ctx context.Context) {
	t.Helper()
	buyer := m.buyers[0]
	var last time.Time
	for _, s := range m.sales {
		if expires := s.Order.GetHoldExpireTime().AsTime(); s.Order != nil && expires.After(last) {
			last = expires
		}
	}
	scenario.Eventually(ctx, t, 10*time.Second, "the last hold expires", func() error {
		if time.Now().After(last) {
			return nil
		}
		return errNotYet
	})
	found, err := m.search(ctx)
	require.NoError(t, err)
	rest, slots := &orderv1.HoldOrderRequest{RequestId: "the-rest"}, int32(0)
	for _, display := range found {
		if display.GetFreeSlots() > 0 {
			rest.Lines = append(rest.Lines, &orderv1.LineRequest{DeviceId: display.GetDeviceId(), Flight: m.flight, Slots: display.GetFreeSlots()})
			slots += display.GetFreeSlots()
		}
	}
	if slots > 0 {
		b := &scenario.Sale{Organisation: buyer.Organisation}
		for _, line := range rest.GetLines() {
			b.Slots = append(b.Slots, line.GetSlots())
		}
		var held orderv1.HoldOrderResponse
		sent := time.Now()
		require.NoError(t, buyer.Ask(ctx, scenario.GRPC, rest, &held), "what is free cannot be held")
		b.Order, b.Hold = held.GetOrder(), scenario.Try{{Sent: sent, Got: time.Now(), OrderID: held.GetOrder().GetOrderId()}}
		sent = time.Now()
		require.NoError(t, buyer.Ask(ctx, scenario.GRPC, &orderv1.BookOrderRequest{OrderId: b.Order.GetOrderId(), RequestId: "the-rest-booked"}, nil))
		b.Book = scenario.Try{{Sent: sent, Got: time.Now(), OrderID: b.Order.GetOrderId()}}
		m.sales = append(m.sales, b)
	}
	left, err := m.free(ctx)
	require.NoError(t, err)
	require.Zero(t, left, "everything is sold")
	t.Logf("%d of %d slots were left for all day, and could be booked", slots, contendedDisplays*contendedSlots)
}
