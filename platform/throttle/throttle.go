// Package throttle bounds how often something may happen, by budgets that are used
// up and fill again as time passes.
package throttle

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Budget is how often something may happen: a burst at once, and once more each
// time that Every has passed.
type Budget struct {
	Burst int
	Every time.Duration
}

// Debit is one use of the budget under a key.
type Debit struct {
	Key    string
	Budget Budget
}

// Wait is how long until all debits are let through, in whole seconds, rounded up,
// as callers are told; 0 when they are at once. whole is, by key, when each budget
// is whole again: every use puts that off by Budget.Every. One without a time is
// whole.
func Wait(debits []Debit, whole map[string]time.Time, now time.Time) time.Duration {
	var wait time.Duration
	for _, d := range debits {
		if at, used := whole[d.Key]; used {
			wait = max(wait, at.Sub(now)-time.Duration(d.Budget.Burst-1)*d.Budget.Every)
		}
	}
	return (wait + time.Second - 1).Truncate(time.Second)
}

// Keys are the keys of debits.
func Keys(debits []Debit) []string {
	keys := make([]string, len(debits))
	for i, d := range debits {
		keys[i] = d.Key
	}
	return keys
}

// InOrder are the debits by key: whoever writes several down in one transaction
// does so in this order, so that two never wait for each other.
func InOrder(debits []Debit) []Debit {
	return slices.SortedFunc(slices.Values(debits), func(a, b Debit) int { return strings.Compare(a.Key, b.Key) })
}

// Network is what somebody has at the price of one address: an IPv4 address, or
// the 64 bits of IPv6 within which they choose freely. It is empty for what is no
// address.
func Network(address string) string {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return ""
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is4() {
		return ip.String()
	}
	prefix, err := ip.Prefix(64)
	if err != nil {
		return ""
	}
	return prefix.String()
}
