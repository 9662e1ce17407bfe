package throttle_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/throttle"
)

func TestWait(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	three, one := throttle.Budget{Burst: 3, Every: time.Minute}, throttle.Budget{Burst: 1, Every: 1500 * time.Millisecond}
	debits := []throttle.Debit{{Key: "three", Budget: three}, {Key: "one", Budget: one}}
	for name, c := range map[string]struct {
		used map[string]time.Duration // until whole
		want time.Duration
	}{
		"Unused":       {nil, 0},
		"UsedLongAgo":  {map[string]time.Duration{"three": -time.Hour, "one": 0}, 0},
		"TwoOfThree":   {map[string]time.Duration{"three": 2 * time.Minute}, 0},
		"ThreeOfThree": {map[string]time.Duration{"three": 3 * time.Minute}, time.Minute},
		"RoundedUp":    {map[string]time.Duration{"one": 1500 * time.Millisecond}, 2 * time.Second},
		"TheLongest":   {map[string]time.Duration{"three": 3 * time.Minute, "one": time.Second}, time.Minute},
		"OfAnother":    {map[string]time.Duration{"two": time.Hour}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			whole := map[string]time.Time{}
			for key, until := range c.used {
				whole[key] = now.Add(until)
			}
			require.Equal(t, c.want, throttle.Wait(debits, whole, now))
		})
	}
}

func TestInOrder(t *testing.T) {
	debits := []throttle.Debit{{Key: "b"}, {Key: "c"}, {Key: "a"}}
	require.Equal(t, []string{"a", "b", "c"}, throttle.Keys(throttle.InOrder(debits)))
	require.Equal(t, []string{"b", "c", "a"}, throttle.Keys(debits), "the caller's are left as they are")
}

func TestNetwork(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1", "2001:db8::1": "2001:db8::/64", "2001:db8:0:0:ffff::": "2001:db8::/64",
		"2001:db8:0:1::1": "2001:db8:0:1::/64", "fe80::1%eth0": "fe80::/64", "": "", "192.0.2.1:80": "", "'; DROP TABLE accounts": "",
	} {
		require.Equal(t, want, throttle.Network(address), address)
	}
}
