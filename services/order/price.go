package order

import (
	"math/bits"
	"time"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/platform/fault"
)

// FullRefund is how long before it begins a line can be cancelled for all of its
// price.
const FullRefund = 72 * time.Hour

// ErrAmountTooLarge is what callers are told whose order would cost too much.
var ErrAmountTooLarge = fault.New(fault.InvalidArgument, "AMOUNT_TOO_LARGE", "it would cost more than 1,000,000,000,000 minor units")

// PlaysOf is how often slots of a loop play: once in each loop that is whole within
// one of times.
func PlaysOf(times []airtime.Range, loop time.Duration, slots int) int64 {
	var loops int64
	for _, r := range times {
		loops += int64(r.Until.Sub(r.From) / loop)
	}
	return loops * int64(slots)
}

// PriceOf is what plays cost. Errors: ErrAmountTooLarge.
func PriceOf(plays int64, slotPrice Money) (Money, error) {
	high, low := bits.Mul64(uint64(plays), uint64(slotPrice.Minor))
	if plays < 0 || slotPrice.Minor < 0 || high > 0 || low > MaxAmount {
		return Money{}, ErrAmountTooLarge
	}
	return Money{Minor: int64(low), Currency: slotPrice.Currency}, nil
}

// RefundOf is what comes back for a line that is cancelled, in minor units: the
// price of the plays that are left, or half of it when the line begins sooner than
// FullRefund from now. It is rounded down.
func RefundOf(l Line, now time.Time) int64 {
	refund := share(l.PriceMinor, PlaysOf(l.left(now), l.LoopLength, len(l.Slots)), l.Plays)
	if l.Start().Before(now.Add(FullRefund)) {
		return refund / 2
	}
	return refund
}

// share is amount * part / whole, rounded down, for a part that is no more than the
// whole; 0 of nothing.
func share(amount, part, whole int64) int64 {
	if amount <= 0 || part <= 0 || part > whole {
		return 0
	}
	high, low := bits.Mul64(uint64(amount), uint64(part))
	quotient, _ := bits.Div64(high, low, uint64(whole))
	return int64(quotient)
}

// past and left are when a line was on before a moment, and is from then on. What is
// past ends at a whole second.
func (l Line) past(now time.Time) []airtime.Range {
	return airtime.Cut(l.Times, l.Start(), wholeSecond(now))
}

func (l Line) left(now time.Time) []airtime.Range {
	return airtime.Cut(l.Times, wholeSecond(now), l.End())
}

// wholeSecond is the first that is not before a moment.
func wholeSecond(t time.Time) time.Time {
	whole := t.UTC().Truncate(time.Second)
	if whole.Before(t) {
		return whole.Add(time.Second)
	}
	return whole
}
