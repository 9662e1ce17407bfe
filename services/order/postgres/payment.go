package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/marquee-ads/marquee/platform/database"
	"github.com/marquee-ads/marquee/services/order"
	"github.com/marquee-ads/marquee/services/order/postgres/query"
)

// TestPayments is a payment provider that takes no money. It has a table of its own
// for what it took, so that instances know each other's charges and a test can count
// them, and it keeps a charge in a transaction of its own, as one that is somebody
// else's does. It declines the payment method order.DeclinedMethod.
type TestPayments struct {
	store *Store
}

// TestPayments is the test provider, with its charges in this database.
func (s *Store) TestPayments() TestPayments { return TestPayments{store: s} }

// Take implements order.Payments.
func (p TestPayments) Take(ctx context.Context, c order.Charge) (string, error) {
	if c.Method == order.DeclinedMethod {
		declined := *order.ErrDeclined
		declined.Message = fmt.Sprintf("the payment was declined: the test provider takes every payment method but %q", order.DeclinedMethod)
		return "", &declined
	}
	var number int64
	err := p.store.transact(ctx, func(ctx context.Context, w work) (err error) {
		number, err = w.TakeTestCharge(ctx, query.TakeTestChargeParams{
			ChargeKey: c.Key, OrganisationID: c.OrganisationID, AmountMinor: c.Minor, Currency: c.Currency, PaymentMethod: c.Method,
		})
		if !none(err) {
			return err
		}
		first, err := w.TestCharge(ctx, c.Key)
		if err != nil {
			return err
		}
		number = first.ChargeNumber
		same := order.Charge{
			Key: c.Key, OrganisationID: first.OrganisationID, Method: first.PaymentMethod,
			Money: order.Money{Minor: first.AmountMinor, Currency: first.Currency},
		}
		if c != same {
			return order.ErrRequestIDReused
		}
		return nil
	})
	if errors.Is(err, database.ErrUnavailable) {
		return "", order.ErrPaymentUnavailable.Because(err)
	}
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("test_%d", number), nil
}
