package scenario

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
)

var (
	salesBegan = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	errTaken   = status.Error(codes.FailedPrecondition, "SLOT_TAKEN")
	errAway    = status.Error(codes.Unavailable, "away")
)

// second is a moment of the history.
func second(n float64) time.Time { return salesBegan.Add(time.Duration(n * float64(time.Second))) }

// did is a call from one second to another that was answered with an order, or why not.
func did(from, to float64, order string, err error) Answer {
	return Answer{Sent: second(from), Got: second(to), OrderID: order, Err: err}
}

// market is a history without anything wrong, and the books that it left: one slot is
// held, booked, cancelled and booked again, half of another one is sold, and some get
// nothing.
func market() ([]Sale, Books, map[string]int64) {
	order := func(id, organisation string, slot int32, fromHour, toHour int, expires float64) *orderv1.Order {
		day := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
		return &orderv1.Order{
			OrderId: id, OrganisationId: organisation, Price: &orderv1.Money{AmountMinor: 100, Currency: "EUR"}, Refunded: &orderv1.Money{Currency: "EUR"},
			HoldExpireTime: timestamppb.New(second(expires)),
			Lines: []*orderv1.Line{{
				LineId: "lin-" + id, DeviceId: "dev", Slots: []int32{slot},
				StartTime: timestamppb.New(day.Add(time.Duration(fromHour) * time.Hour)), EndTime: timestamppb.New(day.Add(time.Duration(toHour) * time.Hour)),
			}},
		}
	}
	one := []int32{1}
	history := []Sale{
		// a books slot 0 and cancels it, after which b has it.
		{
			Organisation: "org-a", Slots: one, Order: order("a1", "org-a", 0, 0, 24, 10),
			Hold: Try{did(0, 1, "a1", nil), did(0, 2, "a1", nil)}, Book: Try{did(2, 3, "", errAway), did(3, 4, "a1", nil)}, Cancel: Try{did(5, 8, "a1", nil)},
		},
		{Organisation: "org-b", Slots: one, Hold: Try{did(2, 3, "", errTaken)}},
		{Organisation: "org-b", Slots: one, Order: order("b1", "org-b", 0, 0, 24, 16), Hold: Try{did(5.5, 6, "b1", nil)}, Book: Try{did(7, 9, "b1", nil)}},
		// c's hold of slot 1 expires, then a and b have a half of it each.
		{Organisation: "org-c", Slots: one, Order: order("c1", "org-c", 1, 0, 24, 3), Hold: Try{did(0, 1, "c1", nil)}, Book: Try{did(4, 5, "", errTaken)}},
		{Organisation: "org-a", Slots: one, Order: order("a2", "org-a", 1, 0, 12, 14), Hold: Try{did(2.9, 4, "a2", nil)}, Book: Try{did(5, 6, "a2", nil)}},
		{Organisation: "org-b", Slots: one, Order: order("b2", "org-b", 1, 12, 24, 14), Hold: Try{did(3, 4, "b2", nil)}, Book: Try{did(5, 6, "", errAway)}},
		// Nobody knows whether c holds something.
		{Organisation: "org-c", Slots: one, Hold: Try{did(6, 9, "", errAway)}},
	}
	row := func(s Sale, state orderv1.OrderState, booked bool) *orderv1.Order {
		o := proto.Clone(s.Order).(*orderv1.Order)
		o.Lines, o.State = nil, state
		if booked {
			o.BookTime = timestamppb.New(second(9))
		}
		return o
	}
	const (
		held, expired     = orderv1.OrderState_ORDER_STATE_HELD, orderv1.OrderState_ORDER_STATE_EXPIRED
		booked, cancelled = orderv1.OrderState_ORDER_STATE_BOOKED, orderv1.OrderState_ORDER_STATE_CANCELLED
	)
	books := Books{
		Orders: map[string]*orderv1.Order{
			"a1": row(history[0], cancelled, true), "b1": row(history[2], booked, true), "c1": row(history[3], expired, false),
			"a2": row(history[4], booked, true), "b2": row(history[5], booked, true),
			"c2": {OrderId: "c2", OrganisationId: "org-c", State: held},
		},
		Balances: map[string]int64{"org-a": 900, "org-b": 800, "org-c": 1000},
	}
	books.Orders["a1"].Refunded.AmountMinor = 100
	for _, i := range []int{0, 2, 4, 5} {
		o := books.Orders[history[i].Order.GetOrderId()]
		line := proto.Clone(history[i].Order.GetLines()[0]).(*orderv1.Line)
		books.Bookings = append(books.Bookings, &orderv1.Booking{Line: line, State: o.GetState(), BuyerOrganisationId: o.GetOrganisationId()})
	}
	return history, books, map[string]int64{"org-a": 1000, "org-b": 1000, "org-c": 1000}
}

func TestCheckSales(t *testing.T) {
	history, books, toppedUp := market()
	require.Empty(t, CheckSales(history, books, toppedUp))

	for name, c := range map[string]struct {
		breaks func(history []Sale, books *Books)
		want   []string
	}{
		"SoldTwice": {
			// As it can be without the constraint: both rows are there.
			func(_ []Sale, books *Books) { books.Bookings[2].Line.Slots = []int32{0} },
			[]string{"slot 0 of dev is sold twice: to a2 and b1"},
		},
		"SoldTwiceAndTold": {
			func(history []Sale, books *Books) {
				history[5].Order.Lines[0].StartTime = history[4].Order.Lines[0].StartTime
				books.Bookings[3].Line.StartTime = books.Bookings[2].Line.StartTime
			},
			[]string{"slot 1 of dev is sold twice: to a2 and b2", "slot 1 of dev was given to two at a time: a2 and b2"},
		},
		"HeldTwice": {
			func(history []Sale, _ *Books) { history[3].Order.HoldExpireTime = timestamppb.New(second(4.5)) },
			[]string{"slot 1 of dev was given to two at a time: c1 and a2", "slot 1 of dev was given to two at a time: c1 and b2"},
		},
		"GivenBeforeTheCancellation": {
			func(history []Sale, _ *Books) { history[0].Cancel[0].Sent = second(7) },
			[]string{"slot 0 of dev was given to two at a time: a1 and b1"},
		},
		"BookingLost": {
			func(_ []Sale, books *Books) { delete(books.Orders, "b1"); books.Bookings = books.Bookings[:1] },
			[]string{
				"a2 is booked, and its display does not have lin-a2", "b1 was acknowledged, and is not there",
				"b2 is booked, and its display does not have lin-b2", "the wallet of org-b has 800, and 900 is left of what was topped up",
			},
		},
		"AcknowledgedAndNotBooked": {
			func(_ []Sale, books *Books) { books.Orders["a2"].State = orderv1.OrderState_ORDER_STATE_EXPIRED },
			[]string{
				"a2 is ORDER_STATE_EXPIRED, and can only be [ORDER_STATE_BOOKED]",
				"lin-a2 is ORDER_STATE_BOOKED to the owner of the display, and ORDER_STATE_EXPIRED to its buyer",
			},
		},
		"RefusedAndBooked": {
			func(_ []Sale, books *Books) {
				books.Orders["c1"].State, books.Orders["c1"].BookTime = orderv1.OrderState_ORDER_STATE_BOOKED, timestamppb.New(second(9))
				books.Balances["org-c"] = 900
			},
			[]string{
				"c1 is ORDER_STATE_BOOKED, and can only be [ORDER_STATE_HELD ORDER_STATE_EXPIRED]",
				"c1 is booked, and its display does not have lin-c1", "c1 was booked, and nobody was told so",
			},
		},
		"NobodyWasToldOfAnOrder": {
			func(_ []Sale, books *Books) {
				books.Orders["c3"] = &orderv1.Order{OrderId: "c3", OrganisationId: "org-a", State: orderv1.OrderState_ORDER_STATE_HELD}
			},
			[]string{"c3 is ORDER_STATE_HELD, and nobody was told of it"},
		},
		"NobodyWasToldOfABooking": {
			func(_ []Sale, books *Books) {
				books.Bookings = append(books.Bookings, &orderv1.Booking{Line: &orderv1.Line{LineId: "lin-x"}})
			},
			[]string{"lin-x is booked, and nobody was told of it"},
		},
		"SomebodyElses": {
			func(_ []Sale, books *Books) { books.Bookings[1].BuyerOrganisationId = "org-c" },
			[]string{"lin-b1 of org-b is booked by org-c"},
		},
		"RepeatMadeAnother": {
			func(history []Sale, _ *Books) { history[0].Hold[1].OrderID = "a9" },
			[]string{"a repeat of the hold of a1 was answered with a9"},
		},
		"RepeatRefused": {
			func(history []Sale, _ *Books) { history[2].Book = append(history[2].Book, did(10, 11, "", errTaken)) },
			[]string{"a repeat of the book of b1 was refused after it was acknowledged: " + errTaken.Error()},
		},
		"OneOrderForTwo": {
			func(history []Sale, _ *Books) {
				history[1].Order, history[1].Hold, history[1].Book = history[2].Order, Try{did(6, 6.5, "b1", nil)}, history[2].Book
			},
			[]string{"b1 is the answer to two holds"},
		},
		"FewerSlots": {
			func(history []Sale, _ *Books) { history[4].Slots = []int32{2} },
			[]string{"lin-a2 has the slots [1], and not as many as were asked for"},
		},
		"MoneyVanished": {
			func(_ []Sale, books *Books) { books.Balances["org-a"] = 899 },
			[]string{"the wallet of org-a has 899, and 900 is left of what was topped up"},
		},
		"NotRefunded": {
			func(_ []Sale, books *Books) { books.Orders["a1"].Refunded.AmountMinor = 0 },
			[]string{"the wallet of org-a has 900, and 800 is left of what was topped up"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			history, books, toppedUp := market()
			c.breaks(history, &books)
			require.Equal(t, c.want, CheckSales(history, books, toppedUp))
		})
	}
}
