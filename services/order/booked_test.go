package order_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/services/order"
)

func TestToldNext(t *testing.T) {
	var (
		none   order.Shown
		first  = order.Shown{CreativeID: "crv_1", Version: 1}
		edited = order.Shown{CreativeID: "crv_1", Version: 2}
	)
	for name, c := range map[string]struct {
		before  order.Told
		due     order.Shown
		allowed bool
		want    order.Told
	}{
		"NothingYet":   {order.Told{}, none, false, order.Told{}},
		"Approved":     {order.Told{}, first, false, order.Told{Shown: first, Number: 1}},
		"Same":         {order.Told{Shown: first, Number: 1}, first, true, order.Told{Shown: first, Number: 1}},
		"Edited":       {order.Told{Shown: first, Number: 1}, edited, true, order.Told{Shown: edited, Number: 2}},
		"EditRejected": {order.Told{Shown: edited, Number: 2}, first, false, order.Told{Shown: first, Number: 3, TakenDown: 2}},
		"TakenAway":    {order.Told{Shown: first, Number: 1}, none, true, order.Told{Number: 1}},
		"TakenDown":    {order.Told{Shown: first, Number: 1}, none, false, order.Told{Number: 1, TakenDown: 1}},
		"OnceMore":     {order.Told{Number: 1, TakenDown: 1}, none, false, order.Told{Number: 1, TakenDown: 1}},
		"Again":        {order.Told{Number: 1, TakenDown: 1}, first, false, order.Told{Shown: first, Number: 2, TakenDown: 1}},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.want, c.before.Next(c.due, c.allowed)) })
	}
}

func TestTakenDownIDs(t *testing.T) {
	require.Empty(t, order.TakenDownIDs("lin_1", 0))
	require.Equal(t, []string{"lin_1-1", "lin_1-2"}, order.TakenDownIDs("lin_1", 2))
	many := order.TakenDownIDs("lin_1", 1000)
	require.Len(t, many, 16)
	require.Equal(t, "lin_1-1000", many[15])
}

func TestNewShowing(t *testing.T) {
	for _, c := range []struct{ media, want time.Duration }{{0, 10 * time.Second}, {7 * time.Second, 7 * time.Second}, {11 * time.Second, 10 * time.Second}} {
		got := order.NewShowing("lin_1", 4, "ab", "video/mp4", c.media, 10*time.Second)
		require.Equal(t, &order.Showing{ID: "lin_1-4", URL: "/v1/media/ab", SHA256: "ab", MediaType: "video/mp4", Duration: c.want}, got)
	}
}
