package server

import (
	"context"

	"github.com/marquee-ads/marquee/platform/auth"
	"github.com/marquee-ads/marquee/platform/service"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
	"github.com/marquee-ads/marquee/services/order"
)

// WalletServer implements WalletService, as Server does OrderService.
type WalletServer struct {
	orderv1.UnimplementedWalletServiceServer
	service *order.Service
}

// NewWallets serves the wallets of a service.
func NewWallets(service *order.Service) *WalletServer { return &WalletServer{service: service} }

// TopUpWallet takes money into a wallet.
func (s *WalletServer) TopUpWallet(ctx context.Context, req *orderv1.TopUpWalletRequest) (*orderv1.TopUpWalletResponse, error) {
	caller, ok := auth.CallerFromContext(ctx)
	if !ok {
		return nil, auth.ErrTokenMissing
	}
	amount := order.Money{Minor: req.GetAmount().GetAmountMinor(), Currency: req.GetAmount().GetCurrency()}
	balance, err := s.service.TopUpWallet(ctx, caller.ID(), req.GetRequestId(), req.GetOrganisationId(), amount, req.GetPaymentMethod())
	if err != nil {
		return nil, err
	}
	return &orderv1.TopUpWalletResponse{Balance: moneyMessage(balance)}, nil
}

// GetWallet returns an organisation's balances.
func (s *WalletServer) GetWallet(ctx context.Context, req *orderv1.GetWalletRequest) (*orderv1.GetWalletResponse, error) {
	balances, err := s.service.Balances(ctx, req.GetOrganisationId())
	if err != nil {
		return nil, err
	}
	return &orderv1.GetWalletResponse{Balances: service.Messages(balances, moneyMessage)}, nil
}

// ListWalletEntries returns a page of what came into a wallet and went out of it.
func (s *WalletServer) ListWalletEntries(ctx context.Context, req *orderv1.ListWalletEntriesRequest) (*orderv1.ListWalletEntriesResponse, error) {
	found, next, err := s.service.ListWalletEntries(ctx, req.GetOrganisationId(), service.PageOf(req))
	if err != nil {
		return nil, err
	}
	return &orderv1.ListWalletEntriesResponse{Entries: service.Messages(found, entryMessage), NextPageToken: next}, nil
}

// entryMessage is an entry as the wallet's owner sees it.
func entryMessage(e order.Entry) *orderv1.WalletEntry {
	amount := e.Minor
	if e.From.Kind == order.WalletAccount {
		amount = -amount
	}
	return &orderv1.WalletEntry{
		EntryId: e.ID, Kind: orderv1.EntryKind(orderv1.EntryKind_value["ENTRY_KIND_"+string(e.Kind)]), AmountMinor: amount, Currency: e.Currency,
		OrderId: e.OrderID, LineId: e.LineID, CreateTime: moment(e.CreateTime),
	}
}
