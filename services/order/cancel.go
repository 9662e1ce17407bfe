package order

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Cancel is the order after it is cancelled. Lines that were booked keep the times
// that are past, and have their refunds; lines that were held say what was held. A
// booked order of which nothing is left is settled by what was played, and not
// cancelled. Errors: ErrState.
func (o Order) Cancel(now time.Time) (Order, error) {
	next, err := o.State.After(Cancel)
	if err != nil {
		return Order{}, err
	}
	o.State, o.CancelTime = next, now
	if o.BookTime.IsZero() {
		return o, nil
	}
	o.Lines = slices.Clone(o.Lines)
	left := false
	for i := range o.Lines {
		l := &o.Lines[i]
		left = left || len(l.left(now)) > 0
		l.RefundedMinor = RefundOf(*l, now)
		o.RefundedMinor += l.RefundedMinor
		l.Times = l.past(now)
		l.Plays = PlaysOf(l.Times, l.LoopLength, len(l.Slots))
	}
	if !left {
		over := *ErrState
		over.Message = "the order is over: nothing is left to cancel"
		return Order{}, &over
	}
	return o, nil
}

// RefundEntries pay what is refunded for an order's lines back.
func (o Order) RefundEntries() []Entry {
	var entries []Entry
	for _, l := range o.Lines {
		if l.RefundedMinor > 0 {
			entries = append(entries, Entry{
				Kind: Refund, From: Kept(o.ID), To: Wallet(o.OrganisationID),
				Money: Money{Minor: l.RefundedMinor, Currency: o.Price.Currency}, OrderID: o.ID, LineID: l.ID,
			})
		}
	}
	return entries
}

// CancelOrder gives the air time that is left of an order back. callerID is whose
// request id it is. Errors: ErrNotFound, ErrState, ErrRequestIDReused.
func (s *Service) CancelOrder(ctx context.Context, callerID, requestID, organisationID, id string) (Order, error) {
	r, err := s.orderRequest("CancelOrder", callerID, requestID, organisationID, id)
	if err != nil {
		return Order{}, err
	}
	cancelled, err := s.store.CancelOrder(ctx, r, organisationID, id)
	if err != nil {
		return Order{}, fmt.Errorf("cancelling an order: %w", err)
	}
	return cancelled, nil
}
