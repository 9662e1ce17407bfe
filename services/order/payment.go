package order

import (
	"context"
	"time"

	"github.com/marquee-ads/marquee/platform/fault"
)

// Charge is money that is taken from a payment method.
type Charge struct {
	// Key names it: a charge with the same key is the same charge, whichever instance
	// sends it, and however often.
	Key string
	// OrganisationID is whose it is.
	OrganisationID string
	Money
	// Method names what pays, as the provider gave it.
	Method string
}

// Payments is a payment provider.
type Payments interface {
	// Take takes the money of a charge, and returns what the provider calls it. Taking a
	// charge again takes nothing, and returns the same. Whether it was taken is not known
	// after any error but the first two. Errors: ErrDeclined with the reason,
	// ErrRequestIDReused when there is another charge with this key,
	// ErrPaymentUnavailable.
	Take(ctx context.Context, c Charge) (reference string, err error)
}

// What callers are told whose money is not taken.
var (
	ErrDeclined           = fault.New(fault.FailedPrecondition, "PAYMENT_DECLINED", "the payment was declined")
	ErrPaymentUnavailable = fault.New(fault.Unavailable, "PAYMENT_UNAVAILABLE", "the payment provider does not answer at the moment").
				WithRetryAfter(time.Second)
)

// DeclinedMethod is the one payment method that the test provider declines.
const DeclinedMethod = "declined"
