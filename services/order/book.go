package order

import (
	"context"
	"fmt"
	"time"

	"github.com/marquee-ads/marquee/platform/paging"
)

// Book is the order after it is paid for. Errors: ErrHoldExpired, ErrState.
func (o Order) Book(now time.Time) (Order, error) {
	next, err := o.State.After(Book)
	if err != nil {
		return Order{}, err
	}
	o.State, o.BookTime = next, now
	return o, nil
}

// PaymentEntry pays for an order.
func (o Order) PaymentEntry() Entry {
	return Entry{Kind: Payment, From: Wallet(o.OrganisationID), To: Kept(o.ID), Money: o.Price, OrderID: o.ID}
}

// DeviceIDs are the displays of its lines, each once.
func (o Order) DeviceIDs() []string {
	return distinct(o.Lines, func(l Line) string { return l.DeviceID })
}

// CreativeIDs are what its lines show, each once.
func (o Order) CreativeIDs() []string {
	return distinct(o.Lines, func(l Line) string { return l.CreativeID })
}

// BookOrder pays for a held order from the organisation's wallet. callerID is whose
// request id it is. Errors: ErrNotFound, ErrHoldExpired, ErrState, ErrFunds,
// ErrRequestIDReused.
func (s *Service) BookOrder(ctx context.Context, callerID, requestID, organisationID, id string) (Order, error) {
	r, err := s.orderRequest("BookOrder", callerID, requestID, organisationID, id)
	if err != nil {
		return Order{}, err
	}
	booked, err := s.store.BookOrder(ctx, r, organisationID, id)
	if err != nil {
		return Order{}, fmt.Errorf("booking an order: %w", err)
	}
	return booked, nil
}

// orderRequest is a write that names an order and says no more.
func (s *Service) orderRequest(method, callerID, requestID, organisationID, id string) (Request, error) {
	return newRequest(callerID, requestID, struct{ Method, OrganisationID, OrderID string }{method, organisationID, id}, s.moment())
}

// FindOrder returns an order. Errors: ErrNotFound.
func (s *Service) FindOrder(ctx context.Context, organisationID, id string) (Order, error) {
	return s.store.FindOrder(ctx, organisationID, id)
}

// ListOrders returns a page of an organisation's orders in a state ("" is any)
// without their lines, the newest first, and the token of the next page, empty on
// the last. Errors: paging.ErrTokenInvalid.
func (s *Service) ListOrders(ctx context.Context, organisationID string, state State, page paging.Page) ([]Order, string, error) {
	of := "orders of " + organisationID
	return paging.List(ctx, of, page, func(ctx context.Context, before string, limit int) ([]Order, error) {
		return s.store.ListOrders(ctx, organisationID, state, before, limit)
	}, func(o Order) string { return o.ID })
}
