package scenario

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
)

// Sale is one attempt to buy air time, as its buyer saw it.
type Sale struct {
	// Organisation is the buyer's.
	Organisation string
	// Order is what the hold was answered with; nil when it was not.
	Order *orderv1.Order
	// Slots are how many of each loop were asked for, line by line.
	Slots []int32
	// Hold, Book and Cancel are the requests, each with its repeats.
	Hold, Book, Cancel Try
}

// Try is a request with its repeats, all of them with one request_id; none when it
// was not sent.
type Try []Answer

// Answer is what one call got.
type Answer struct {
	// Sent is when the call was made, Got when it came back.
	Sent, Got time.Time
	// OrderID is what was done to; empty with an error.
	OrderID string
	Err     error
}

// Outcome is what a buyer knows of a request.
type Outcome int

// What buyers know.
const (
	NotSent Outcome = iota
	// Done is that it was acknowledged.
	Done
	// Denied is that every one of its calls was refused.
	Denied
	// Unknown is that it was done or was not: of a call that got no answer, nobody knows,
	// also when a repeat is refused.
	Unknown
)

// Outcome is what the answers say together.
func (t Try) Outcome() Outcome {
	outcome := NotSent
	for _, a := range t {
		switch {
		case a.Err == nil:
			return Done
		case !Refused(a.Err):
			outcome = Unknown
		case outcome == NotSent:
			outcome = Denied
		}
	}
	return outcome
}

// Settled says whether there is nothing to gain by another repeat: it is done, or the
// last call was refused.
func (t Try) Settled() bool { return t.Outcome() == Done || Refused(t[len(t)-1].Err) }

// sent is when it may have been done first.
func (t Try) sent() time.Time {
	return slices.MinFunc(t, func(a, b Answer) int { return a.Sent.Compare(b.Sent) }).Sent
}

// answered is since when it is known to be done.
func (t Try) answered() time.Time {
	var first time.Time
	for _, a := range t {
		if a.Err == nil && (first.IsZero() || a.Got.Before(first)) {
			first = a.Got
		}
	}
	return first
}

// Books are what the platform has at the end.
type Books struct {
	// Orders are all of all buyers, by id, without lines.
	Orders map[string]*orderv1.Order
	// Bookings are all on the displays.
	Bookings []*orderv1.Booking
	// Balances are the buyers', by organisation, in minor units.
	Balances map[string]int64
}

// ReadBooks reads what a seller of displays and all buyers are told.
func ReadBooks(ctx context.Context, seller *Owner, buyers []*Owner) (Books, error) {
	b := Books{Orders: map[string]*orderv1.Order{}, Balances: map[string]int64{}}
	const pageSize = 200
	bookings := &orderv1.ListBookingsRequest{PageSize: pageSize}
	for {
		var page orderv1.ListBookingsResponse
		if err := seller.Ask(ctx, GRPC, bookings, &page); err != nil {
			return b, err
		}
		b.Bookings = append(b.Bookings, page.GetBookings()...)
		if bookings.PageToken = page.GetNextPageToken(); bookings.PageToken == "" {
			break
		}
	}
	for _, buyer := range buyers {
		orders := &orderv1.ListOrdersRequest{PageSize: pageSize}
		for {
			var page orderv1.ListOrdersResponse
			if err := buyer.Ask(ctx, GRPC, orders, &page); err != nil {
				return b, err
			}
			for _, o := range page.GetOrders() {
				b.Orders[o.GetOrderId()] = o
			}
			if orders.PageToken = page.GetNextPageToken(); orders.PageToken == "" {
				break
			}
		}
		var wallet orderv1.GetWalletResponse
		if err := buyer.Ask(ctx, GRPC, &orderv1.GetWalletRequest{}, &wallet); err != nil {
			return b, err
		}
		if len(wallet.GetBalances()) > 1 {
			return b, errors.New("a buyer has money in several currencies")
		}
		for _, balance := range wallet.GetBalances() {
			b.Balances[buyer.Organisation] = balance.GetAmountMinor()
		}
	}
	return b, nil
}

// CheckSales decides whether the books are what the history of all sales allows, and
// returns what is not: nothing was held or sold twice at a time, every acknowledged
// booking is there, every refused one is not, repeats were answered the same, and
// each buyer has what was topped up less what is paid. Each line is on from its start
// to its end without a pause.
func CheckSales(history []Sale, books Books, toppedUp map[string]int64) []string {
	c := salesCheck{books: books, sales: map[string]*Sale{}, lines: map[string]*Sale{}}
	unknown := map[string]int{} // holds, by organisation
	for i := range history {
		s := &history[i]
		c.answers(s)
		if s.Hold.Outcome() == Unknown {
			unknown[s.Organisation]++
		}
		if s.Order == nil {
			continue
		}
		if before := c.sales[s.Order.GetOrderId()]; before != nil {
			c.wrong("%s is the answer to two holds", s.Order.GetOrderId())
		}
		c.sales[s.Order.GetOrderId()] = s
		for _, line := range s.Order.GetLines() {
			c.lines[line.GetLineId()] = s
		}
		c.state(s)
	}
	for id, o := range books.Orders {
		if c.sales[id] != nil {
			continue
		}
		unpaid := o.GetState() == orderv1.OrderState_ORDER_STATE_HELD || o.GetState() == orderv1.OrderState_ORDER_STATE_EXPIRED
		if unknown[o.GetOrganisationId()]--; !unpaid || unknown[o.GetOrganisationId()] < 0 {
			c.wrong("%s is %s, and nobody was told of it", id, o.GetState())
		}
	}
	c.bookings()
	c.possession(history)
	c.money(toppedUp)
	slices.Sort(c.problems)
	return c.problems
}

type salesCheck struct {
	books    Books
	sales    map[string]*Sale // by order
	lines    map[string]*Sale // by line
	problems []string
}

func (c *salesCheck) wrong(format string, args ...any) {
	c.problems = append(c.problems, fmt.Sprintf(format, args...))
}

// answers looks at the requests of one sale: all are about one order, and what was
// acknowledged is not refused later.
func (c *salesCheck) answers(s *Sale) {
	for what, try := range map[string]Try{"hold": s.Hold, "book": s.Book, "cancel": s.Cancel} {
		for _, a := range try {
			if a.Err == nil && a.OrderID != s.Order.GetOrderId() {
				c.wrong("a repeat of the %s of %s was answered with %s", what, s.Order.GetOrderId(), a.OrderID)
			}
			if done := try.answered(); Refused(a.Err) && !done.IsZero() && a.Sent.After(done) {
				c.wrong("a repeat of the %s of %s was refused after it was acknowledged: %v", what, s.Order.GetOrderId(), a.Err)
			}
		}
	}
	if s.Order == nil {
		return
	}
	for i, line := range s.Order.GetLines() {
		slots := slices.Compact(slices.Sorted(slices.Values(line.GetSlots())))
		if i >= len(s.Slots) || len(slots) != int(s.Slots[i]) {
			c.wrong("%s has the slots %v, and not as many as were asked for", line.GetLineId(), line.GetSlots())
		}
	}
}

// state looks at what became of an order that was acknowledged.
func (c *salesCheck) state(s *Sale) {
	id := s.Order.GetOrderId()
	row := c.books.Orders[id]
	if row == nil {
		c.wrong("%s was acknowledged, and is not there", id)
		return
	}
	if row.GetOrganisationId() != s.Organisation {
		c.wrong("%s of %s belongs to %s", id, s.Organisation, row.GetOrganisationId())
	}
	const (
		held, expired     = orderv1.OrderState_ORDER_STATE_HELD, orderv1.OrderState_ORDER_STATE_EXPIRED
		booked, cancelled = orderv1.OrderState_ORDER_STATE_BOOKED, orderv1.OrderState_ORDER_STATE_CANCELLED
	)
	var may []orderv1.OrderState
	book, cancel := s.Book.Outcome(), s.Cancel.Outcome()
	if cancel != Done {
		if book != Done {
			may = append(may, held, expired)
		}
		if book == Done || book == Unknown {
			may = append(may, booked)
		}
	}
	if cancel == Done || cancel == Unknown {
		may = append(may, cancelled)
	}
	if !slices.Contains(may, row.GetState()) {
		c.wrong("%s is %s, and can only be %v", id, row.GetState(), may)
	}
	if book != Done && book != Unknown && row.GetBookTime() != nil {
		c.wrong("%s was booked, and nobody was told so", id)
	}
}

// bookings looks at what is booked on the displays.
func (c *salesCheck) bookings() {
	found := map[string]bool{}
	var booked []taken
	for _, b := range c.books.Bookings {
		line := b.GetLine()
		found[line.GetLineId()] = true
		s := c.lines[line.GetLineId()]
		if s == nil {
			c.wrong("%s is booked, and nobody was told of it", line.GetLineId())
			continue
		}
		id := s.Order.GetOrderId()
		if b.GetBuyerOrganisationId() != s.Organisation {
			c.wrong("%s of %s is booked by %s", line.GetLineId(), s.Organisation, b.GetBuyerOrganisationId())
		}
		if state := c.books.Orders[id].GetState(); b.GetState() != state {
			c.wrong("%s is %s to the owner of the display, and %s to its buyer", line.GetLineId(), b.GetState(), state)
		}
		if b.GetState() == orderv1.OrderState_ORDER_STATE_BOOKED {
			booked = append(booked, places(line, id, time.Time{}, endless)...)
		}
	}
	for id, s := range c.sales {
		if c.books.Orders[id].GetState() != orderv1.OrderState_ORDER_STATE_BOOKED {
			continue
		}
		for _, line := range s.Order.GetLines() {
			if !found[line.GetLineId()] {
				c.wrong("%s is booked, and its display does not have %s", id, line.GetLineId())
			}
		}
	}
	for _, pair := range clashes(booked) {
		c.wrong("slot %d of %s is sold twice: to %s and %s", pair[0].slot, pair[0].device, pair[0].order, pair[1].order)
	}
}

// possession looks at when each buyer certainly had its slots: from when it was told
// so until it may have lost them. No two have one at a moment.
func (c *salesCheck) possession(history []Sale) {
	var had []taken
	for i := range history {
		s := &history[i]
		if s.Order == nil {
			continue
		}
		from, until := s.Hold.answered(), s.Order.GetHoldExpireTime().AsTime()
		if s.Book.Outcome() == Done {
			until = endless
		}
		if cancel := s.Cancel.Outcome(); cancel == Done || cancel == Unknown {
			if sent := s.Cancel.sent(); sent.Before(until) {
				until = sent
			}
		}
		for _, line := range s.Order.GetLines() {
			had = append(had, places(line, s.Order.GetOrderId(), from, until)...)
		}
	}
	for _, pair := range clashes(had) {
		c.wrong("slot %d of %s was given to two at a time: %s and %s", pair[0].slot, pair[0].device, pair[0].order, pair[1].order)
	}
}

// money compares each wallet with what went in and out.
func (c *salesCheck) money(toppedUp map[string]int64) {
	left := maps.Clone(toppedUp)
	for _, o := range c.books.Orders {
		if o.GetBookTime() != nil {
			left[o.GetOrganisationId()] += o.GetRefunded().GetAmountMinor() - o.GetPrice().GetAmountMinor()
		}
	}
	for organisation, amount := range left {
		if have := c.books.Balances[organisation]; have != amount {
			c.wrong("the wallet of %s has %d, and %d is left of what was topped up", organisation, have, amount)
		}
	}
}

// endless is after every moment.
var endless = time.Unix(1<<40, 0)

// taken is a slot of a display that an order has, during the time that it is on,
// and while it has it.
type taken struct {
	device      string
	slot        int32
	order, line string
	start, end  time.Time
	from, until time.Time
}

func places(line *orderv1.Line, order string, from, until time.Time) []taken {
	var all []taken
	for _, slot := range line.GetSlots() {
		all = append(all, taken{
			device: line.GetDeviceId(), slot: slot, order: order, line: line.GetLineId(), from: from, until: until,
			start: line.GetStartTime().AsTime(), end: line.GetEndTime().AsTime(),
		})
	}
	return all
}

// clashes are the pairs of which both have the same slot at the same time.
func clashes(all []taken) [][2]taken {
	slices.SortFunc(all, func(a, b taken) int {
		return cmp.Or(cmp.Compare(a.device, b.device), cmp.Compare(a.slot, b.slot), a.from.Compare(b.from), cmp.Compare(a.order, b.order))
	})
	var pairs [][2]taken
	for i, a := range all {
		for _, b := range all[i+1:] {
			if b.device != a.device || b.slot != a.slot || !b.from.Before(a.until) {
				break
			}
			if a.line != b.line && a.start.Before(b.end) && b.start.Before(a.end) && b.from.Before(b.until) {
				pairs = append(pairs, [2]taken{a, b})
			}
		}
	}
	return pairs
}
