package order

import (
	"context"
	"time"

	"github.com/marquee-ads/marquee/platform/fault"
)

// AccountKind is what an account of the ledger is for.
type AccountKind string

// What accounts there are.
const (
	// ExternalAccount is where top-ups come from.
	ExternalAccount AccountKind = "EXTERNAL"
	// WalletAccount is what an organisation can spend.
	WalletAccount AccountKind = "WALLET"
	// OrderAccount keeps what was paid for an order until it is settled.
	OrderAccount AccountKind = "ORDER"
	// PlatformAccount gets the platform's share.
	PlatformAccount AccountKind = "PLATFORM"
)

// Account is where money is, in the currency of what is moved.
type Account struct {
	Kind AccountKind
	// Of is the organisation of a wallet, or the order; else empty.
	Of string
}

// External is where top-ups come from.
func External() Account { return Account{Kind: ExternalAccount} }

// Wallet is an organisation's.
func Wallet(organisationID string) Account { return Account{Kind: WalletAccount, Of: organisationID} }

// Kept is what was paid for an order and is not settled yet.
func Kept(orderID string) Account { return Account{Kind: OrderAccount, Of: orderID} }

// Platform is where the platform's share goes.
func Platform() Account { return Account{Kind: PlatformAccount} }

// ID names the account in the ledger. An order has one, in the currency that it is
// priced in.
func (a Account) ID(currency string) string {
	switch a.Kind {
	case WalletAccount:
		return "wallet:" + a.Of + ":" + currency
	case OrderAccount:
		return "order:" + a.Of
	case PlatformAccount:
		return "platform:" + currency
	default:
		return "external:" + currency
	}
}

// EntryKind is why money moves.
type EntryKind string

// Why money moves.
const (
	// TopUp is in from a payment method.
	TopUp EntryKind = "TOP_UP"
	// Payment is from a wallet to what is kept for an order that is booked.
	Payment EntryKind = "BOOKING"
	// Refund is back from there to the wallet.
	Refund EntryKind = "REFUND"
	// Earning is from there to the wallet of a display's owner.
	Earning EntryKind = "EARNING"
	// Fee is from there to the platform.
	Fee EntryKind = "FEE"
)

// Entry is a movement of money from one account to another. Entries never change.
type Entry struct {
	// ID is "ent_" and a ULID: those that are younger are greater. The ledger gives it.
	ID       string
	Kind     EntryKind
	From, To Account
	Money
	// OrderID is what it is about; empty for a top-up.
	OrderID string
	// LineID is the line that it is about, if it is about one.
	LineID string
	// Reference is what the payment provider calls a top-up.
	Reference string
	// CreateTime is given by the ledger.
	CreateTime time.Time
}

// ErrFunds is what callers are told who pay with more than their wallet has.
var ErrFunds = fault.New(fault.FailedPrecondition, "FUNDS_INSUFFICIENT", "the wallet has less than this costs: top it up")

// LedgerStore keeps the ledger; it is a part of Store. Every entry takes from one
// account what it gives to another.
type LedgerStore interface {
	// ToppedUp says whether the request came before. Errors: ErrRequestIDReused.
	ToppedUp(ctx context.Context, r Request) (bool, error)
	// TopUp stores an entry from outside into a wallet and returns the wallet's balance.
	// A reference that is in the ledger adds nothing.
	TopUp(ctx context.Context, r Request, e Entry) (Money, error)
	// Balances returns those of an organisation's wallets, ordered by currency.
	Balances(ctx context.Context, organisationID string) ([]Money, error)
	// ListWalletEntries returns up to limit entries from and to an organisation's wallets
	// whose id is less than before ("" is no bound), the greatest first.
	ListWalletEntries(ctx context.Context, organisationID, before string, limit int) ([]Entry, error)
	// CheckLedger says in words what of money, orders and reservations does not fit
	// together; nothing when all does. It reads all of it, as it was at one moment.
	CheckLedger(ctx context.Context) ([]string, error)
}
