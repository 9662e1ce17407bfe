package scenario

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
)

const (
	// settleWithin is for how long a buyer repeats a request that is neither done nor
	// refused, and callTimeout for how long it waits for one answer.
	settleWithin = 30 * time.Second
	callTimeout  = 10 * time.Second
)

// MarketConfig says what a market is.
type MarketConfig struct {
	// Displays are for sale on one day, each with so many Slots.
	Displays, Slots int
	// Buyers are organisations: several people may buy for one. The last one is soon
	// out of money.
	Buyers int
	// Pace is how long a person waits between two attempts, on average.
	Pace time.Duration
}

// Market is where many want the same slots. It keeps what everybody was told.
type Market struct {
	Seller *Owner
	Buyers []*Owner
	// Creatives are what each organisation has shown on half of what it books; none
	// when it has nothing.
	Creatives map[string]string

	cfg      MarketConfig
	displays []string
	toppedUp map[string]int64 // what each organisation paid in
	flight   *orderv1.Flight
	left     atomic.Int64 // attempts
	shopping sync.WaitGroup
	began    time.Time
	lasted   time.Duration
	seed     uint64

	mu    sync.Mutex
	sales []*Sale
	took  map[string][]time.Duration // by what was asked for
}

// NewMarket enrols the displays and signs the buyers up, through these doors.
func NewMarket(ctx context.Context, t testing.TB, doors Doors, cfg MarketConfig) *Market {
	t.Helper()
	// It begins in more than 72 hours, so that a cancellation refunds all.
	day := time.Now().AddDate(0, 0, 10).Format(time.DateOnly)
	m := &Market{
		Seller: NewOwner(ctx, t, doors), Buyers: make([]*Owner, cfg.Buyers), Creatives: map[string]string{},
		cfg: cfg, displays: make([]string, cfg.Displays), toppedUp: map[string]int64{},
		flight: &orderv1.Flight{StartDate: day, EndDate: day}, took: map[string][]time.Duration{},
	}
	const slot = 6 // seconds
	for i := range m.displays {
		settings := DisplaySettings(fmt.Sprintf("Display %d", i), slot*time.Second)
		settings["loopLengthSeconds"] = slot * cfg.Slots
		settings["slotPrice"] = map[string]any{"amountMinor": 1, "currency": "EUR"}
		id, _, err := m.Seller.Enrol(ctx, fmt.Sprintf("display-%d", i), settings)
		require.NoError(t, err)
		m.displays[i] = id
	}
	for i := range m.Buyers {
		m.Buyers[i] = NewAdvertiser(ctx, t, doors)
		money := int64(1_000_000_000)
		if i == len(m.Buyers)-1 {
			money = 5_000
		}
		require.NoError(t, m.Buyers[i].TopUp(ctx, "the-top-up", money, "EUR"))
		m.toppedUp[m.Buyers[i].Organisation] = money
	}
	Eventually(ctx, t, 15*time.Second, "the displays are for sale", func() error {
		free, err := m.free(ctx)
		if err == nil && free != cfg.Displays*cfg.Slots {
			err = fmt.Errorf("%d slots are", free)
		}
		return err
	})
	return m
}

// Open lets people buy, who make so many attempts together. What they do is random,
// of a seed.
func (m *Market) Open(ctx context.Context, people int, attempts int64, seed uint64) {
	m.left.Store(attempts)
	m.began, m.seed = time.Now(), seed
	for n := range people {
		m.shopping.Go(func() { m.shop(ctx, n) })
	}
}

// Left is how many attempts are left.
func (m *Market) Left() int64 { return max(0, m.left.Load()) }

// Wait waits until no attempt is left.
func (m *Market) Wait() {
	m.shopping.Wait()
	m.lasted = time.Since(m.began)
}

// Close waits for the attempts under way, and no others are made.
func (m *Market) Close() {
	m.left.Store(0)
	m.Wait()
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

// shop is what one person does until no attempt is left: it holds what it can get,
// forgets some of it, gives some back and books the rest, and when it gets nothing it
// cancels what it has.
func (m *Market) shop(ctx context.Context, n int) {
	random := rand.New(rand.NewPCG(m.seed, uint64(n))) //nolint:gosec // no secret, and not negative
	who := m.Buyers[n%len(m.Buyers)]
	var have []*buying
	for i := 0; m.left.Add(-1) >= 0 && ctx.Err() == nil; i++ {
		if m.cfg.Pace > 0 {
			wait(ctx, time.Duration(random.Int64N(int64(2*m.cfg.Pace))))
		}
		b := &buying{Market: m, who: who, random: random, id: fmt.Sprintf("buyer-%d-%d", n, i), sale: &Sale{Organisation: who.Organisation}}
		b.hold(ctx)
		m.mu.Lock()
		m.sales = append(m.sales, b.sale)
		m.mu.Unlock()
		if b.sale.Hold.Outcome() != Done {
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
			if b.sale.Book.Outcome() == Done {
				have = append(have, b)
			}
		}
	}
}

// wait is the pause of a person, which is no condition to wait for.
func wait(ctx context.Context, pause time.Duration) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// buying is one attempt under way.
type buying struct {
	*Market
	who    *Owner
	random *rand.Rand
	id     string // that request_ids begin with
	sale   *Sale
}

// send makes a request until it is done or refused. Now and then it is made twice at
// once, or once more afterwards, as by a client that lost the answer.
func (b *buying) send(ctx context.Context, what string, in proto.Message, order func() (out proto.Message, id func() string)) Try {
	var mu sync.Mutex
	var try Try
	call := func(door Door) {
		out, id := order()
		answer := Answer{Sent: time.Now()}
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
	first := Door(b.random.IntN(2))
	var twice sync.WaitGroup
	if b.random.IntN(8) == 0 {
		twice.Go(func() { call(1 - first) })
	}
	call(first)
	twice.Wait()
	pause := 50 * time.Millisecond
	for began := time.Now(); !try.Settled() && time.Since(began) < settleWithin && ctx.Err() == nil; pause = min(2*pause, time.Second) {
		wait(ctx, pause)
		call(first)
	}
	if try.Outcome() == Done && b.random.IntN(8) == 0 {
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
	for _, display := range b.random.Perm(len(b.displays))[:1+b.random.IntN(min(2, len(b.displays)))] {
		slots := 1 + b.random.Int32N(2)
		b.sale.Slots = append(b.sale.Slots, slots)
		line := &orderv1.LineRequest{DeviceId: b.displays[display], Flight: b.flight, Slots: slots, Dayparts: halves(b.random.IntN(3))}
		if b.random.IntN(2) == 0 {
			line.CreativeId = b.Creatives[b.who.Organisation]
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

// search is what is free all day.
func (m *Market) search(ctx context.Context) ([]*orderv1.Availability, error) {
	var found orderv1.SearchAvailabilityResponse
	err := m.Buyers[0].Ask(ctx, REST, &orderv1.SearchAvailabilityRequest{Flight: m.flight, Slots: 1, DeviceIds: m.displays, IncludeFull: true}, &found)
	return found.GetDisplays(), err
}

func (m *Market) free(ctx context.Context) (slots int, err error) {
	found, err := m.search(ctx)
	for _, display := range found {
		slots += int(display.GetFreeSlots())
	}
	return slots, err
}

// Check requires of a market that is closed that what should be tried was, buys what
// is left, and requires that what all were told is what is. It prints what happened.
func (m *Market) Check(ctx context.Context, t testing.TB) {
	t.Helper()
	m.report(t)
	m.sellOut(ctx, t)
	books, err := ReadBooks(ctx, m.Seller, m.Buyers)
	require.NoError(t, err)
	history := make([]Sale, len(m.sales))
	for i, sale := range m.sales {
		history[i] = *sale
	}
	require.Empty(t, CheckSales(history, books, m.toppedUp), "what is wrong with the sales, of seed %d", m.seed)
}

func (m *Market) report(t testing.TB) {
	t.Helper()
	counts := map[string]int{}
	count := func(what string, try Try) {
		switch try.Outcome() {
		case Done:
			counts[what]++
		case Denied:
			counts[what+" refused: "+Reason(try[0].Err)]++
		case Unknown:
			counts[what+" unknown: "+Reason(try[len(try)-1].Err)]++
		}
		for _, a := range try[min(1, len(try)):] {
			counts["repeats"]++
			if a.Err != nil && !Refused(a.Err) {
				counts["repeats without an answer: "+Reason(a.Err)]++
			}
		}
	}
	for _, s := range m.sales {
		count("held", s.Hold)
		count("booked", s.Book)
		count("cancelled", s.Cancel)
	}
	t.Logf("%d attempts in %.1f s: %v", len(m.sales), m.lasted.Seconds(), counts)
	for what, took := range m.took {
		slices.Sort(took)
		t.Logf("%s: %d, %.0f a second, p50 %s, p99 %s, longest %s", what, len(took), float64(len(took))/m.lasted.Seconds(),
			took[len(took)/2].Round(time.Millisecond), took[len(took)*99/100].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
	}
	for _, what := range []string{"held", "booked", "cancelled", "repeats", "held refused: SLOT_TAKEN"} {
		require.NotZero(t, counts[what], "%s: %v", what, counts)
	}
}

// errNotOver is what a wait says that has nothing to add.
var errNotOver = errors.New("it is not over")

// sellOut waits until all holds have expired, and buys what is left: what nobody
// booked is in nobody's way.
func (m *Market) sellOut(ctx context.Context, t testing.TB) {
	t.Helper()
	buyer := m.Buyers[0]
	var last time.Time
	for _, s := range m.sales {
		if expires := s.Order.GetHoldExpireTime().AsTime(); s.Order != nil && expires.After(last) {
			last = expires
		}
	}
	Eventually(ctx, t, 10*time.Second, "the last hold expires", func() error {
		if time.Now().After(last) {
			return nil
		}
		return errNotOver
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
		b := &Sale{Organisation: buyer.Organisation}
		for _, line := range rest.GetLines() {
			b.Slots = append(b.Slots, line.GetSlots())
		}
		var held orderv1.HoldOrderResponse
		sent := time.Now()
		require.NoError(t, buyer.Ask(ctx, GRPC, rest, &held), "what is free cannot be held")
		b.Order, b.Hold = held.GetOrder(), Try{{Sent: sent, Got: time.Now(), OrderID: held.GetOrder().GetOrderId()}}
		sent = time.Now()
		require.NoError(t, buyer.Ask(ctx, GRPC, &orderv1.BookOrderRequest{OrderId: b.Order.GetOrderId(), RequestId: "the-rest-booked"}, nil))
		b.Book = Try{{Sent: sent, Got: time.Now(), OrderID: b.Order.GetOrderId()}}
		m.sales = append(m.sales, b)
	}
	left, err := m.free(ctx)
	require.NoError(t, err)
	require.Zero(t, left, "everything is sold")
	t.Logf("%d of %d slots were left for all day, and could be booked", slots, m.cfg.Displays*m.cfg.Slots)
}
