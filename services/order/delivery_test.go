package order_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/services/order"
)

// A line of ten hours on two days, 60 plays an hour.
var (
	begin  = time.Date(2026, 12, 1, 10, 0, 0, 0, time.UTC)
	second = begin.Add(24 * time.Hour)
	line   = order.Line{
		ID: "lin_1", Slots: []int{3}, LoopLength: time.Minute, SlotLength: 10 * time.Second, Plays: 600, PriceMinor: 1001,
		Times: []airtime.Range{{From: begin, Until: begin.Add(5 * time.Hour)}, {From: second, Until: second.Add(5 * time.Hour)}},
	}
	booked = order.Order{State: order.Booked, Price: order.Money{Minor: 1001, Currency: "EUR"}}
)

func TestDeliveryOf(t *testing.T) {
	end := second.Add(5 * time.Hour)
	cancelled, completed := booked, booked
	cancelled.State, cancelled.CancelTime = order.Cancelled, begin.Add(2*time.Hour)
	completed.State = order.Completed
	cut := line
	cut.Times, cut.Plays = []airtime.Range{{From: begin, Until: begin.Add(2 * time.Hour)}}, 120
	never := line
	never.Times, never.Plays = nil, 0
	settled := line
	settled.RefundedMinor = 17
	for name, c := range map[string]struct {
		order   order.Order
		line    order.Line
		counted int64
		now     time.Time
		want    order.Delivery
		percent float64
		pacing  float64
	}{
		"Before":          {booked, line, 0, begin.Add(-time.Hour), order.Delivery{BookedPlays: 600, ForecastPlays: 600}, 0, 100},
		"OnPace":          {booked, line, 60, begin.Add(time.Hour), order.Delivery{BookedPlays: 600, ScheduledPlays: 60, DeliveredPlays: 60, ForecastPlays: 600}, 10, 100},
		"Behind":          {booked, line, 30, begin.Add(time.Hour), order.Delivery{BookedPlays: 600, ScheduledPlays: 60, DeliveredPlays: 30, ForecastPlays: 300}, 5, 50},
		"Nothing":         {booked, line, 0, begin.Add(time.Hour), order.Delivery{BookedPlays: 600, ScheduledPlays: 60}, 0, 0},
		"Ahead":           {booked, line, 90, begin.Add(time.Hour), order.Delivery{BookedPlays: 600, ScheduledPlays: 60, DeliveredPlays: 90, ForecastPlays: 600}, 15, 150},
		"AtNight":         {booked, line, 300, begin.Add(12 * time.Hour), order.Delivery{BookedPlays: 600, ScheduledPlays: 300, DeliveredPlays: 300, ForecastPlays: 600}, 50, 100},
		"LastMinute":      {booked, line, 300, end.Add(-time.Minute), order.Delivery{BookedPlays: 600, ScheduledPlays: 599, DeliveredPlays: 300, ForecastPlays: 300}, 50, 100 * 300.0 / 599},
		"OverNothing":     {booked, line, 0, end, order.Delivery{BookedPlays: 600, ScheduledPlays: 600, MakeGoodPlays: 600, MakeGood: order.Money{Minor: 1001}}, 0, 0},
		"OverHalf":        {booked, line, 300, end, order.Delivery{BookedPlays: 600, ScheduledPlays: 600, DeliveredPlays: 300, ForecastPlays: 300, MakeGoodPlays: 300, MakeGood: order.Money{Minor: 501}}, 50, 50},
		"OverAll":         {booked, line, 600, end.Add(time.Hour), order.Delivery{BookedPlays: 600, ScheduledPlays: 600, DeliveredPlays: 600, ForecastPlays: 600}, 100, 100},
		"OverMore":        {booked, line, 780, end, order.Delivery{BookedPlays: 600, ScheduledPlays: 600, DeliveredPlays: 780, ForecastPlays: 600}, 130, 130},
		"Cancelled":       {cancelled, cut, 30, end, order.Delivery{BookedPlays: 120, ScheduledPlays: 120, DeliveredPlays: 30, ForecastPlays: 30}, 25, 25},
		"CancelledBefore": {cancelled, never, 0, end, order.Delivery{}, 0, 100},
		// What came after it was settled is shown, and changes no money.
		"Completed": {completed, settled, 600, end, order.Delivery{BookedPlays: 600, ScheduledPlays: 600, DeliveredPlays: 600, ForecastPlays: 600, MakeGood: order.Money{Minor: 17}}, 100, 100},
	} {
		t.Run(name, func(t *testing.T) {
			c.want.MakeGood.Currency = "EUR"
			got := order.DeliveryOf(c.order, c.line, c.counted, c.now)
			require.Equal(t, c.want, got)
			require.InDelta(t, c.percent, got.DeliveredPercent(), 1e-9)
			require.InDelta(t, c.pacing, got.PacingPercent(), 1e-9)
		})
	}
}
