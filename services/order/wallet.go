package order

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"golang.org/x/text/currency"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/paging"
)

const (
	// MaxBalance bounds what a wallet is topped up to, in minor units.
	MaxBalance = 1_000_000_000_000_000

	// paymentWithin bounds how long the payment provider may take.
	paymentWithin = 10 * time.Second
)

// What callers are told that top a wallet up.
var (
	ErrTopUp         = fault.New(fault.InvalidArgument, "VALIDATION_FAILED", "the top-up is not possible")
	ErrWalletTooFull = fault.New(fault.InvalidArgument, "AMOUNT_TOO_LARGE", "the wallet would have more than 1,000,000,000,000,000 minor units").
				WithField("amount.amount_minor", "balance.bound", "is more than the wallet can take")
)

// TopUpWallet takes money from a payment method into an organisation's wallet, and
// returns what is in it then. callerID is whose request id it is. Errors: ErrTopUp,
// ErrWalletTooFull, ErrDeclined, ErrPaymentUnavailable, ErrRequestIDReused.
func (s *Service) TopUpWallet(ctx context.Context, callerID, requestID, organisationID string, amount Money, method string) (Money, error) {
	if err := amount.possible(); err != nil {
		return Money{}, err
	}
	now := s.moment()
	r, err := newRequest(callerID, requestID, struct {
		Method, OrganisationID string
		Amount                 Money
		PaymentMethod          string
	}{"TopUpWallet", organisationID, amount, method}, now)
	if err != nil {
		return Money{}, err
	}
	came, err := s.store.ToppedUp(ctx, r)
	if err != nil {
		return Money{}, fmt.Errorf("looking for the request: %w", err)
	}
	balance, err := s.balance(ctx, organisationID, amount.Currency)
	if err != nil || came {
		return balance, err
	}
	// What is taken is stored, whatever else came in meanwhile: so this is looked at
	// before, and does not bind what two requests at once add up to.
	if balance.Minor > MaxBalance-amount.Minor {
		return Money{}, ErrWalletTooFull
	}
	if s.payments == nil {
		return Money{}, ErrPaymentUnavailable.Because(errors.New("the service has no payment provider"))
	}
	// The key is of the request and not of what it says: when this ends between the two,
	// a repeat with another body is refused as it would be otherwise.
	key := sha256.Sum256([]byte(callerID + "\n" + requestID))
	within, cancel := context.WithTimeout(ctx, paymentWithin)
	defer cancel()
	reference, err := s.payments.Take(within, Charge{
		Key: hex.EncodeToString(key[:]), OrganisationID: organisationID, Money: amount, Method: method,
	})
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			err = ErrPaymentUnavailable.Because(err)
		}
		return Money{}, fmt.Errorf("taking the payment: %w", err)
	}
	// Also for a caller who has left meanwhile.
	after, err := s.store.TopUp(context.WithoutCancel(ctx), r, Entry{
		Kind: TopUp, From: External(), To: Wallet(organisationID), Money: amount, Reference: reference,
	})
	if err != nil {
		return Money{}, fmt.Errorf("storing a top-up: %w", err)
	}
	return after, nil
}

// possible says whether it is an amount that can be paid. Errors: ErrTopUp.
func (m Money) possible() error {
	if m.Minor <= 0 || m.Minor > MaxAmount {
		return ErrTopUp.WithField("amount.amount_minor", "amount.bounds", fmt.Sprintf("is not from 1 to %d", int64(MaxAmount)))
	}
	// ParseISO takes lower case as well.
	if unit, err := currency.ParseISO(m.Currency); err != nil || unit.String() != m.Currency || unit == currency.XXX || unit == currency.XTS {
		return ErrTopUp.WithField("amount.currency", "currency.known", "is no currency of ISO 4217, such as EUR")
	}
	return nil
}

// balance is what an organisation has in a currency.
func (s *Service) balance(ctx context.Context, organisationID, unit string) (Money, error) {
	all, err := s.store.Balances(ctx, organisationID)
	if err != nil {
		return Money{}, fmt.Errorf("reading the wallet: %w", err)
	}
	for _, b := range all {
		if b.Currency == unit {
			return b, nil
		}
	}
	return Money{Currency: unit}, nil
}

// Balances returns what an organisation has, ordered by currency.
func (s *Service) Balances(ctx context.Context, organisationID string) ([]Money, error) {
	return s.store.Balances(ctx, organisationID)
}

// ListWalletEntries returns a page of what came into an organisation's wallets and
// went out of them, the newest first, and the token of the next, empty on the last.
// Errors: paging.ErrTokenInvalid.
func (s *Service) ListWalletEntries(ctx context.Context, organisationID string, page paging.Page) ([]Entry, string, error) {
	of := "wallet entries of " + organisationID
	return paging.List(ctx, of, page, func(ctx context.Context, before string, limit int) ([]Entry, error) {
		return s.store.ListWalletEntries(ctx, organisationID, before, limit)
	}, func(e Entry) string { return e.ID })
}
