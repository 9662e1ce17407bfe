package order

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// DefaultSettleAfter is how long after the last line of an order has ended it is
	// settled: until then players that were offline may hand plays in.
	DefaultSettleAfter = 48 * time.Hour
	// DefaultPlatformShare is the platform's share of what is earned, in percent.
	DefaultPlatformShare = 20

	// settleBatch is how many orders that are due are read at once.
	settleBatch = 100
)

// DuePosition is a place in the list of orders that are to be settled.
type DuePosition struct {
	EndTime time.Time
	OrderID string
}

// DeliveredMinor is the part of a line's price that was delivered: its plays that
// count by those that were booked, rounded down to a minor unit, and never more than
// the price. What is left of the price is the buyer's.
func DeliveredMinor(priceMinor, counted, booked int64) int64 {
	if counted >= booked {
		return priceMinor
	}
	return share(priceMinor, counted, booked)
}

// SplitEarning divides what was earned between the display's owner and the platform,
// whose share in percent is rounded down to a minor unit.
func SplitEarning(amountMinor int64, platformShare int) (ownerMinor, platformMinor int64) {
	// Of whole hundreds and of the rest: the product of all could have too many bits.
	platformMinor = amountMinor/100*int64(platformShare) + amountMinor%100*int64(platformShare)/100
	return amountMinor - platformMinor, platformMinor
}

// Settle settles the booked orders whose last line ended so long ago: what was
// delivered of each line goes to the owner of its display, less the platform's share,
// and the rest of the price back to the buyer. Several instances may do it at the same
// time, and each order is settled once. An order that cannot be settled is left for
// the next time; the error says why, also when others were settled. When the plays
// cannot be read, nothing more is tried.
func (s *Service) Settle(ctx context.Context, after time.Duration) (settled int, err error) {
	var problems []error
	before := s.moment().Add(-after)
	for last := (DuePosition{}); ; {
		due, err := s.store.DueOrders(ctx, before, last, settleBatch)
		if err != nil {
			return settled, errors.Join(append(problems, fmt.Errorf("reading what is to be settled: %w", err))...)
		}
		for _, o := range due {
			done, err := s.settle(ctx, o)
			if err != nil {
				problems = append(problems, fmt.Errorf("settling %s: %w", o.ID, err))
			}
			if errors.Is(err, ErrPlaysUnavailable) || ctx.Err() != nil {
				return settled, errors.Join(problems...)
			}
			if done {
				settled++
			}
			last = DuePosition{EndTime: o.EndTime, OrderID: o.ID}
		}
		if len(due) < settleBatch {
			return settled, errors.Join(problems...)
		}
	}
}

// settle settles one order, unless another instance does, or has. The plays are read
// before the transaction, which then lasts no longer than the database takes.
func (s *Service) settle(ctx context.Context, o Order) (bool, error) {
	o, err := s.store.FindOrder(ctx, o.OrganisationID, o.ID)
	if err != nil {
		return false, err
	}
	counted, err := s.counted(ctx, o)
	if err != nil {
		return false, err
	}
	return s.store.SettleOrder(ctx, o, counted, s.moment())
}

// Settle is the order after it is settled by how many plays of each line count: what
// was not delivered is refunded. Errors: ErrState.
func (o Order) Settle(counted map[string]int64) (Order, error) {
	next, err := o.State.After(Settle)
	if err != nil {
		return Order{}, err
	}
	o.State, o.RefundedMinor, o.Lines = next, 0, slices.Clone(o.Lines)
	for i := range o.Lines {
		l := &o.Lines[i]
		l.RefundedMinor = l.PriceMinor - DeliveredMinor(l.PriceMinor, counted[l.ID], l.Plays)
		o.RefundedMinor += l.RefundedMinor
	}
	return o, nil
}

// PayOut is what becomes of the money that is kept for an order: of each line what it
// says is refunded goes back to the buyer, and the rest to the owner of its display,
// less the platform's share. earned is what the owners get, by the lines' ids. Nothing
// is kept any more then.
func (o Order) PayOut(platformShare int) (entries []Entry, earned map[string]int64) {
	entries, earned = o.RefundEntries(), make(map[string]int64, len(o.Lines))
	for _, l := range o.Lines {
		owner, platform := SplitEarning(l.PriceMinor-l.RefundedMinor, platformShare)
		earned[l.ID] = owner
		for _, e := range []Entry{
			{Kind: Earning, To: Wallet(l.OwnerID), Money: Money{Minor: owner}},
			{Kind: Fee, To: Platform(), Money: Money{Minor: platform}},
		} {
			if e.Minor > 0 {
				e.From, e.Currency, e.OrderID, e.LineID = Kept(o.ID), o.Price.Currency, o.ID, l.ID
				entries = append(entries, e)
			}
		}
	}
	return entries, earned
}
