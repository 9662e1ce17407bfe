package order_test

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/services/order"
)

func TestDeliveredMinor(t *testing.T) {
	for name, c := range map[string]struct{ price, counted, booked, want int64 }{
		"Nothing":    {1000, 0, 100, 0},
		"Half":       {1000, 50, 100, 500},
		"All":        {1000, 100, 100, 1000},
		"More":       {1000, 130, 100, 1000},
		"RoundsDown": {100, 1, 3, 33},
		"Almost":     {100, 2_999_999, 3_000_000, 99},
		"Free":       {0, 5, 10, 0},
		"Large":      {order.MaxAmount, 31_622_399, 31_622_400, 999_999_968_376},
		"NoneBooked": {1000, 0, 0, 1000},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, order.DeliveredMinor(c.price, c.counted, c.booked))
		})
	}
}

func TestSplitEarning(t *testing.T) {
	for name, c := range map[string]struct {
		amount          int64
		share           int
		owner, platform int64
	}{
		"Fifth":      {1000, 20, 800, 200},
		"RoundsDown": {99, 20, 80, 19},
		"Cent":       {1, 20, 1, 0},
		"CentOfMost": {1, 99, 1, 0},
		"Nothing":    {0, 20, 0, 0},
		"None":       {12345, 0, 12345, 0},
		"All":        {12345, 100, 0, 12345},
		"Large":      {order.MaxAmount + 99, 33, 670_000_000_067, 330_000_000_032},
	} {
		t.Run(name, func(t *testing.T) {
			owner, platform := order.SplitEarning(c.amount, c.share)
			require.Equal(t, [2]int64{c.owner, c.platform}, [2]int64{owner, platform})
		})
	}
}

// Whatever is delivered, all that was paid goes to somebody.
func TestPayOut(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		o := order.Order{ID: "ord_1", OrganisationID: "org_buyer", State: order.Booked, Price: order.Money{Currency: "EUR"}}
		counted := map[string]int64{}
		for _, id := range []string{"lin_1", "lin_2", "lin_3"} {
			l := order.Line{ID: id, OrderID: o.ID, OwnerID: "org_" + id, PriceMinor: random.Int64N(1000), Plays: 1 + random.Int64N(300)}
			counted[id] = random.Int64N(l.Plays * 5 / 4)
			o.Lines, o.Price.Minor = append(o.Lines, l), o.Price.Minor+l.PriceMinor
		}
		settled, err := o.Settle(counted)
		require.NoError(t, err)
		require.Equal(t, order.Completed, settled.State)
		require.Zero(t, o.Lines[0].RefundedMinor, "the order that was settled is another one")
		share := random.IntN(101)
		entries, earned := settled.PayOut(share)
		var paid, back, toOwners int64
		for _, e := range entries {
			require.Positive(t, e.Minor)
			require.Equal(t, order.Kept(o.ID), e.From)
			require.Equal(t, "EUR", e.Currency)
			paid += e.Minor
			switch e.Kind {
			case order.Refund:
				require.Equal(t, order.Wallet("org_buyer"), e.To)
				back += e.Minor
			case order.Earning:
				require.Equal(t, order.Wallet("org_"+e.LineID), e.To)
				require.Equal(t, earned[e.LineID], e.Minor)
				toOwners += e.Minor
			default:
				require.Equal(t, order.Fee, e.Kind)
				require.Equal(t, order.Platform(), e.To)
			}
		}
		require.Equal(t, o.Price.Minor, paid, "%d percent of %+v", share, o.Lines)
		require.Equal(t, settled.RefundedMinor, back)
		var all int64
		for _, l := range settled.Lines {
			require.Equal(t, l.PriceMinor-order.DeliveredMinor(l.PriceMinor, counted[l.ID], l.Plays), l.RefundedMinor)
			all += earned[l.ID]
		}
		require.Equal(t, all, toOwners)
	}
	for _, state := range []order.State{order.Held, order.Expired, order.Cancelled, order.Completed} {
		_, err := order.Order{State: state}.Settle(nil)
		require.ErrorIs(t, err, order.ErrState)
	}
}
