package server_test

import (
	"context"
	"crypto/rand"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/postgres/postgrestest"
	"github.com/marquee-ads/marquee/services/order/server"
)

const (
	buyer   = "org_01ARZ3NDEKTSV4RRFFQ69G5FAV"
	owner   = "org_01CZ5ZZKBKACTAV9WEVGEMMVRZ"
	display = "dev_01ARZ3NDEKTSV4RRFFQ69G5FAV"
)

// TestOrders has an order from its hold to its cancellation, in messages.
func TestOrders(t *testing.T) {
	store, db := postgrestest.On(t, &pg)
	require.NoError(t, db.Transact(t.Context(), func(ctx context.Context, tx pgx.Tx) error {
		return store.PutDisplay(ctx, tx, order.Display{
			DeviceID: display, OrganisationID: owner, LoopLength: time.Minute, SlotLength: 10 * time.Second, SlotPrice: order.Money{Minor: 250, Currency: "EUR"},
			TimeZone: "Europe/Berlin", Hours: []airtime.Opening{{Weekday: 2, Open: 480, Close: 600}}, Revision: 1, Playable: true,
		})
	}))
	_, err := store.TopUp(t.Context(), order.Request{CallerID: "x", RequestID: "x", Fingerprint: make([]byte, 32), Time: time.Now(), ExpireTime: time.Now()}, order.Entry{
		Kind: order.TopUp, From: order.External(), To: order.Wallet(buyer), Money: order.Money{Minor: 100_000, Currency: "EUR"}, Reference: "x",
	})
	require.NoError(t, err)
	var clock atomic.Pointer[time.Time]
	set := func(now time.Time) { clock.Store(&now) }
	set(time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC))
	s := server.NewServer(order.New(store, order.Outside{}, func() time.Time { return *clock.Load() }, rand.Reader))
	ctx := auth.ContextWithCaller(t.Context(), auth.Caller{AccountID: "acc_ada"})

	hold := &orderv1.HoldOrderRequest{
		OrganisationId: buyer, RequestId: "request-a", Title: "Spring", LifetimeSeconds: 90,
		Lines: []*orderv1.LineRequest{{
			DeviceId: display, Flight: &orderv1.Flight{StartDate: "2026-03-09", EndDate: "2026-03-18"}, Slots: 2,
			Dayparts: []*orderv1.Daypart{{Weekday: 3, EndMinute: 60}, {Weekday: 2, StartMinute: 540, EndMinute: 660}},
			MaxPrice: &orderv1.Money{AmountMinor: 60_000, Currency: "EUR"},
		}},
	}
	before := time.Now()
	held, err := s.HoldOrder(ctx, hold)
	require.NoError(t, err)
	o := held.GetOrder()
	expires := o.GetHoldExpireTime().AsTime()
	require.WithinRange(t, expires, before.Add(80*time.Second), time.Now().Add(100*time.Second))
	want := &orderv1.Order{
		OrderId: o.GetOrderId(), OrganisationId: buyer, Title: "Spring", State: orderv1.OrderState_ORDER_STATE_HELD, LineCount: 1,
		Price: &orderv1.Money{AmountMinor: 60_000, Currency: "EUR"}, Refunded: &orderv1.Money{Currency: "EUR"},
		CreateTime: moment(2026, 3, 2, 10, 0), HoldExpireTime: o.GetHoldExpireTime(),
		Lines: []*orderv1.Line{{
			LineId: o.GetLines()[0].GetLineId(), DeviceId: display, Flight: hold.GetLines()[0].GetFlight(),
			Dayparts: []*orderv1.Daypart{{Weekday: 2, StartMinute: 540, EndMinute: 660}, {Weekday: 3, EndMinute: 60}},
			Slots:    []int32{0, 1}, SlotsPerLoop: 6, SlotLengthSeconds: 10, TimeZone: "Europe/Berlin",
			StartTime: moment(2026, 3, 10, 8, 0), EndTime: moment(2026, 3, 17, 9, 0),
			Plays: 240, Price: &orderv1.Money{AmountMinor: 60_000, Currency: "EUR"},
		}},
	}
	same(t, want, o)
	require.Regexp(t, "^ord_[0-7][0-9A-HJKMNP-TV-Z]{25}$", o.GetOrderId())
	require.Regexp(t, "^lin_[0-7][0-9A-HJKMNP-TV-Z]{25}$", o.GetLines()[0].GetLineId())
	again, err := s.HoldOrder(ctx, hold)
	require.NoError(t, err)
	same(t, want, again.GetOrder())
	got := func() *orderv1.Order {
		t.Helper()
		found, err := s.GetOrder(ctx, &orderv1.GetOrderRequest{OrganisationId: buyer, OrderId: o.GetOrderId()})
		require.NoError(t, err)
		return found.GetOrder()
	}
	same(t, want, got())

	set(time.Date(2026, 3, 2, 11, 0, 0, 0, time.UTC))
	booked, err := s.BookOrder(ctx, &orderv1.BookOrderRequest{OrganisationId: buyer, OrderId: o.GetOrderId(), RequestId: "request-b"})
	require.NoError(t, err)
	want.State, want.BookTime = orderv1.OrderState_ORDER_STATE_BOOKED, moment(2026, 3, 2, 11, 0)
	same(t, want, booked.GetOrder())
	same(t, want, got())

	set(time.Date(2026, 3, 11, 0, 0, 0, 0, time.UTC))
	cancelled, err := s.CancelOrder(ctx, &orderv1.CancelOrderRequest{OrganisationId: buyer, OrderId: o.GetOrderId(), RequestId: "request-c"})
	require.NoError(t, err)
	want.State, want.CancelTime = orderv1.OrderState_ORDER_STATE_CANCELLED, moment(2026, 3, 11, 0, 0)
	want.Refunded.AmountMinor = 15_000
	want.Lines[0].Plays, want.Lines[0].EndTime = 120, moment(2026, 3, 10, 9, 0)
	same(t, want, cancelled.GetOrder())
	same(t, want, got())

	want.Lines = nil
	for state, n := range map[orderv1.OrderState]int{
		orderv1.OrderState_ORDER_STATE_UNSPECIFIED: 1, orderv1.OrderState_ORDER_STATE_CANCELLED: 1, orderv1.OrderState_ORDER_STATE_HELD: 0,
		orderv1.OrderState_ORDER_STATE_EXPIRED: 0, orderv1.OrderState_ORDER_STATE_BOOKED: 0, orderv1.OrderState_ORDER_STATE_COMPLETED: 0,
	} {
		list, err := s.ListOrders(ctx, &orderv1.ListOrdersRequest{OrganisationId: buyer, State: state})
		require.NoError(t, err)
		require.Len(t, list.GetOrders(), n, "%s", state)
		if n == 1 {
			same(t, want, list.GetOrders()[0])
		}
	}

	t.Run("WhatACallerIsTold", func(t *testing.T) {
		_, err := s.HoldOrder(ctx, &orderv1.HoldOrderRequest{OrganisationId: buyer, RequestId: "request-d", Lines: []*orderv1.LineRequest{
			{DeviceId: display, Flight: &orderv1.Flight{StartDate: "2026-03-17", EndDate: "2026-03-17"}, Slots: 6},
			{DeviceId: display, Flight: &orderv1.Flight{StartDate: "2026-03-24", EndDate: "2026-03-24"}, Slots: 7},
		}})
		f := grpcfault.FromStatus(grpcfault.ToStatus(err, ""))
		require.Equal(t, "VALIDATION_FAILED", f.Reason)
		require.Equal(t, "lines[1].slots", f.Fields[0].Path)
		require.Equal(t, "are more than a loop of the display has: 6", f.Fields[0].Description)
	})
	t.Run("NobodyCalls", func(t *testing.T) {
		_, err := s.HoldOrder(t.Context(), hold)
		require.ErrorIs(t, err, auth.ErrTokenMissing)
		_, err = s.BookOrder(t.Context(), &orderv1.BookOrderRequest{})
		require.ErrorIs(t, err, auth.ErrTokenMissing)
		_, err = s.CancelOrder(t.Context(), &orderv1.CancelOrderRequest{})
		require.ErrorIs(t, err, auth.ErrTokenMissing)
	})
}

func same(t *testing.T, want, got proto.Message) {
	t.Helper()
	require.True(t, proto.Equal(want, got), "want %v\n got %v", want, got)
}
