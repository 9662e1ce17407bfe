package order_test

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/services/order"
)

// at is so long after a midnight.
func at(d time.Duration) time.Time { return time.Date(2026, 3, 10, 0, 0, 0, 0, time.UTC).Add(d) }

func TestPlaysOf(t *testing.T) {
	for name, c := range map[string]struct {
		times []airtime.Range
		slots int
		want  int64
	}{
		"None":          {nil, 1, 0},
		"ADay":          {[]airtime.Range{{From: at(0), Until: at(24 * time.Hour)}}, 1, 1440},
		"Slots":         {[]airtime.Range{{From: at(0), Until: at(24 * time.Hour)}}, 3, 4320},
		"ALoop":         {[]airtime.Range{{From: at(0), Until: at(time.Minute)}}, 2, 2},
		"LessThanALoop": {[]airtime.Range{{From: at(0), Until: at(59 * time.Second)}}, 2, 0},
		"WholeLoopsOfEach": {[]airtime.Range{
			{From: at(0), Until: at(90 * time.Second)}, {From: at(time.Hour), Until: at(time.Hour + 90*time.Second)},
		}, 1, 2},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.want, order.PlaysOf(c.times, time.Minute, c.slots)) })
	}
}

func TestPriceOf(t *testing.T) {
	for name, c := range map[string]struct {
		plays, minor, want int64
	}{
		"OK":           {1440, 250, 360_000},
		"Free":         {1440, 0, 0},
		"TheMost":      {1_000_000, 1_000_000, order.MaxAmount},
		"OneMore":      {order.MaxAmount + 1, 1, -1},
		"Overflow":     {math.MaxInt64, math.MaxInt64, -1},
		"OverflowLow":  {1 << 32, 1 << 32, -1}, // 0 in 64 bits
		"OverflowSign": {1 << 32, 1 << 31, -1}, // negative in 64 bits
		"Negative":     {1, -1, -1},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := order.PriceOf(c.plays, order.Money{Minor: c.minor, Currency: "EUR"})
			if c.want < 0 {
				require.ErrorIs(t, err, order.ErrAmountTooLarge)
				return
			}
			require.NoError(t, err)
			require.Equal(t, order.Money{Minor: c.want, Currency: "EUR"}, got)
		})
	}
}

func TestRefundOf(t *testing.T) {
	// Two hours on two days, 240 plays of two slots at 7.
	line := order.Line{
		Slots: []int{0, 1}, LoopLength: time.Minute, SlotLength: 10 * time.Second, Plays: 480, PriceMinor: 3360,
		Times: []airtime.Range{{From: at(0), Until: at(2 * time.Hour)}, {From: at(24 * time.Hour), Until: at(26 * time.Hour)}},
	}
	odd := line
	odd.PriceMinor = 3361
	dear := line
	dear.PriceMinor = math.MaxInt64
	for name, c := range map[string]struct {
		line order.Line
		now  time.Duration
		want int64
	}{
		"LongBefore":          {line, -1000 * time.Hour, 3360},
		"72HoursBefore":       {line, -72 * time.Hour, 3360},
		"LessThan72Hours":     {line, -72*time.Hour + time.Nanosecond, 1680},
		"WhenItBegins":        {line, 0, 1680},
		"AfterALoop":          {line, time.Minute, 1673},
		"InTheMiddleOfALoop":  {line, 30 * time.Second, 1673},
		"JustAfterALoop":      {line, time.Minute + time.Nanosecond, 1666},
		"BetweenItsTimes":     {line, 10 * time.Hour, 840},
		"BeforeTheLastLoop":   {line, 26*time.Hour - time.Minute, 7},
		"InTheLastLoop":       {line, 26*time.Hour - time.Second, 0},
		"WhenItEnds":          {line, 26 * time.Hour, 0},
		"Later":               {line, 1000 * time.Hour, 0},
		"AllOfAnOddPrice":     {odd, -72 * time.Hour, 3361},
		"HalfIsRoundedDown":   {odd, -time.Hour, 1680},
		"NoPriceIsTooMuch":    {dear, -72 * time.Hour, math.MaxInt64},
		"HalfOfTheGreatest":   {dear, -time.Hour, math.MaxInt64 / 2},
		"NothingOfNothing":    {order.Line{LoopLength: time.Minute}, 0, 0},
		"FreeAirTimeHasNone":  {order.Line{LoopLength: time.Minute, Slots: []int{0}, Times: line.Times, Plays: 240}, -72 * time.Hour, 0},
		"TheSecondIsWholeNow": {line, -time.Nanosecond, 1680},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.want, order.RefundOf(c.line, at(c.now))) })
	}
}
