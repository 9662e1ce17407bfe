package main

import (
	"encoding/csv"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
)

const aDay = 24 * time.Hour

var errDeviceAway = fault.New(fault.Unavailable, "DATABASE_UNAVAILABLE", "the database cannot be reached at the moment")

func TestDelivery(t *testing.T) {
	w := newWorld(t)
	i := w.start(t)
	o := i.book(t, "request-1", i.displays(t, 2)...)
	first, last := o.GetLines()[0], o.GetLines()[1]
	require.EqualValues(t, 2880, first.GetPlays())
	get := func() *orderv1.GetDeliveryResponse {
		t.Helper()
		found, err := i.GetDelivery(i.buyer(t), &orderv1.GetDeliveryRequest{OrganisationId: buyer, OrderId: o.GetOrderId()})
		require.NoError(t, err)
		return found
	}
	export := func() [][]string {
		t.Helper()
		found, err := i.ExportDelivery(i.buyer(t), &orderv1.ExportDeliveryRequest{OrganisationId: buyer, OrderId: o.GetOrderId()})
		require.NoError(t, err)
		require.Equal(t, strings.Count(found.GetCsv(), "\n"), strings.Count(found.GetCsv(), "\r\n"), "RFC 4180 ends lines with CRLF")
		rows, err := csv.NewReader(strings.NewReader(found.GetCsv())).ReadAll()
		require.NoError(t, err)
		return rows
	}

	t.Run("Before", func(t *testing.T) {
		require.EqualValues(t, 2880, get().GetTotal().GetForecastPlays()/2)
		require.Zero(t, get().GetTotal().GetScheduledPlays())
		require.Len(t, export(), 1)
	})

	t.Run("Amid", func(t *testing.T) {
		// It began at midnight before today: now is somewhere in its second day.
		w.past(t, o.GetOrderId(), 2*aDay)
		day := func(ago time.Duration) string { return time.Now().UTC().Add(-ago).Format(time.DateOnly) }
		w.device.played(first.GetLineId(), day(aDay), 1440, 1440)
		w.device.played(last.GetLineId(), day(aDay), 800, 700)
		w.device.played(last.GetLineId(), day(0), 21, 20)
		got := get()
		require.Len(t, got.GetLines(), 2)
		require.Equal(t, []string{first.GetLineId(), first.GetDeviceId()}, []string{got.GetLines()[0].GetLineId(), got.GetLines()[0].GetDeviceId()})
		of := got.GetLines()[1].GetDelivery()
		require.EqualValues(t, 2880, of.GetBookedPlays())
		require.InDelta(t, 1440+time.Since(time.Now().UTC().Truncate(aDay)).Minutes(), of.GetScheduledPlays(), 2)
		require.EqualValues(t, 720, of.GetDeliveredPlays())
		require.InDelta(t, 25, of.GetDeliveredPercent(), 1e-9)
		require.InDelta(t, 100*720/float64(of.GetScheduledPlays()), of.GetPacingPercent(), 1e-9)
		require.InDelta(t, 2880*720/float64(of.GetScheduledPlays()), of.GetForecastPlays(), 2)
		require.Zero(t, of.GetMakeGoodPlays())
		require.Equal(t, "EUR", of.GetMakeGood().GetCurrency())
		require.EqualValues(t, 5760, got.GetTotal().GetBookedPlays())
		require.EqualValues(t, 2160, got.GetTotal().GetDeliveredPlays())
		require.InDelta(t, 37.5, got.GetTotal().GetDeliveredPercent(), 1e-9)
		require.Equal(t, [][]string{
			{"line_id", "device_id", "day", "plays", "counted_plays", "duration_seconds"},
			{first.GetLineId(), first.GetDeviceId(), day(aDay), "1440", "1440", "14328.000"},
			{last.GetLineId(), last.GetDeviceId(), day(aDay), "800", "700", "7960.000"},
			{last.GetLineId(), last.GetDeviceId(), day(0), "21", "20", "208.950"},
		}, export())
	})

	t.Run("Over", func(t *testing.T) {
		w.past(t, o.GetOrderId(), aDay)
		got := get()
		require.EqualValues(t, 2880, got.GetLines()[0].GetDelivery().GetScheduledPlays())
		require.EqualValues(t, 1440, got.GetLines()[0].GetDelivery().GetMakeGoodPlays())
		require.EqualValues(t, 1440, got.GetLines()[0].GetDelivery().GetMakeGood().GetAmountMinor())
		// The plays of today are none of its, any more.
		require.EqualValues(t, 2180, got.GetLines()[1].GetDelivery().GetMakeGoodPlays())
		require.EqualValues(t, 2*2180, got.GetLines()[1].GetDelivery().GetMakeGood().GetAmountMinor(), "a play costs 2 there")
		require.EqualValues(t, 1440+2*2180, got.GetTotal().GetMakeGood().GetAmountMinor())
	})

	t.Run("ExportOfSome", func(t *testing.T) {
		found, err := i.ExportDelivery(i.buyer(t), &orderv1.ExportDeliveryRequest{OrganisationId: buyer, OrderId: o.GetOrderId(), LineIds: []string{first.GetLineId()}})
		require.NoError(t, err)
		require.Contains(t, found.GetCsv(), first.GetLineId())
		require.NotContains(t, found.GetCsv(), last.GetLineId())
		_, err = i.ExportDelivery(i.buyer(t), &orderv1.ExportDeliveryRequest{OrganisationId: buyer, OrderId: o.GetOrderId(), LineIds: []string{"lin_01ARZ3NDEKTSV4RRFFQ69G5FAV"}})
		refused(t, err, codes.NotFound, "LINE_NOT_FOUND")
	})

	t.Run("ErrPlaysUnavailable", func(t *testing.T) {
		w.device.fail(errDeviceAway)
		_, err := i.GetDelivery(i.buyer(t), &orderv1.GetDeliveryRequest{OrganisationId: buyer, OrderId: o.GetOrderId()})
		refused(t, err, codes.Unavailable, "PLAYS_UNAVAILABLE")
		require.Positive(t, grpcfault.RetryAfter(status.Convert(err)))
		_, err = i.ExportDelivery(i.buyer(t), &orderv1.ExportDeliveryRequest{OrganisationId: buyer, OrderId: o.GetOrderId()})
		refused(t, err, codes.Unavailable, "PLAYS_UNAVAILABLE")
		w.device.fail(nil)
		get()
	})

	t.Run("ErrOrderNotFound", func(t *testing.T) {
		_, err := i.GetDelivery(i.as(t, owner, auth.Owner), &orderv1.GetDeliveryRequest{OrganisationId: owner, OrderId: o.GetOrderId()})
		refused(t, err, codes.NotFound, "ORDER_NOT_FOUND")
	})

	t.Run("ErrOrderState", func(t *testing.T) {
		held, err := i.HoldOrder(i.buyer(t), &orderv1.HoldOrderRequest{OrganisationId: buyer, RequestId: "request-held", Lines: []*orderv1.LineRequest{{DeviceId: first.GetDeviceId(), Flight: days(1), Slots: 1}}})
		require.NoError(t, err)
		_, err = i.GetDelivery(i.buyer(t), &orderv1.GetDeliveryRequest{OrganisationId: buyer, OrderId: held.GetOrder().GetOrderId()})
		refused(t, err, codes.FailedPrecondition, "ORDER_STATE")
	})

	t.Run("Cancelled", func(t *testing.T) {
		o := i.book(t, "request-2", first.GetDeviceId())
		_, err := i.CancelOrder(i.buyer(t), &orderv1.CancelOrderRequest{OrganisationId: buyer, OrderId: o.GetOrderId(), RequestId: "cancel-2"})
		require.NoError(t, err)
		found, err := i.GetDelivery(i.buyer(t), &orderv1.GetDeliveryRequest{OrganisationId: buyer, OrderId: o.GetOrderId()})
		require.NoError(t, err)
		require.Zero(t, found.GetTotal().GetBookedPlays())
		require.Zero(t, found.GetTotal().GetMakeGood().GetAmountMinor())
	})
}

func TestBookings(t *testing.T) {
	w := newWorld(t)
	i := w.start(t)
	displays := i.displays(t, 2)
	var want []string
	for n := range 3 {
		for _, l := range i.book(t, fmt.Sprintf("request-%d", n), displays...).GetLines() {
			want = append(want, l.GetLineId())
		}
	}
	list := func(req *orderv1.ListBookingsRequest) (ids []string) {
		t.Helper()
		req.OrganisationId = owner
		for {
			page, err := i.ListBookings(i.owner(t), req)
			require.NoError(t, err)
			for _, b := range page.GetBookings() {
				ids = append(ids, b.GetLine().GetLineId())
				require.Equal(t, buyer, b.GetBuyerOrganisationId())
				require.Equal(t, orderv1.OrderState_ORDER_STATE_BOOKED, b.GetState())
				require.Equal(t, "EUR", b.GetEarned().GetCurrency())
				require.Zero(t, b.GetEarned().GetAmountMinor())
			}
			if req.PageToken = page.GetNextPageToken(); req.GetPageToken() == "" {
				return ids
			}
		}
	}
	all := list(&orderv1.ListBookingsRequest{PageSize: 2})
	require.ElementsMatch(t, want, all)
	require.IsDecreasing(t, all)
	require.Equal(t, all, list(&orderv1.ListBookingsRequest{}))
	require.Len(t, list(&orderv1.ListBookingsRequest{DeviceId: displays[0], PageSize: 1}), 3)
	midnight := time.Now().UTC().Truncate(aDay)
	at := func(days int) *timestamppb.Timestamp {
		return timestamppb.New(midnight.Add(time.Duration(days) * aDay))
	}
	require.Len(t, list(&orderv1.ListBookingsRequest{FromTime: at(1), ToTime: at(2)}), 6)
	require.Empty(t, list(&orderv1.ListBookingsRequest{ToTime: at(1)}), "they begin then")
	require.Empty(t, list(&orderv1.ListBookingsRequest{FromTime: at(3)}), "they have ended then")

	page, err := i.ListBookings(i.owner(t), &orderv1.ListBookingsRequest{OrganisationId: owner, PageSize: 2})
	require.NoError(t, err)
	_, err = i.ListBookings(i.owner(t), &orderv1.ListBookingsRequest{OrganisationId: owner, DeviceId: displays[0], PageToken: page.GetNextPageToken()})
	refused(t, err, codes.InvalidArgument, "PAGE_TOKEN_INVALID")
	none, err := i.ListBookings(i.as(t, buyer, auth.Operator), &orderv1.ListBookingsRequest{OrganisationId: buyer})
	require.NoError(t, err)
	require.Empty(t, none.GetBookings(), "it has no displays")
	_, err = i.ListBookings(i.as(t, owner, auth.Advertiser), &orderv1.ListBookingsRequest{OrganisationId: owner})
	refused(t, err, codes.PermissionDenied, "ROLE_NOT_ALLOWED")
}
