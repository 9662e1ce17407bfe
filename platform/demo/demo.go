// Package demo fills a platform that nobody uses yet with something to see: owners of
// displays, their displays, pictures that these show, and advertisers who book them.
package demo

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/files"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
	devicev1 "github.com/marquee-ads/marquee/proto/gen/marquee/device/v1"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
)

// Config says which platform is filled.
type Config struct {
	// Gateway is a gateway's gRPC door on this machine, host:port, and HTTP its other.
	Gateway, HTTP string
	// Folder is where the accounts are kept, for the user alone.
	Folder string
	// Credentials returns those that players have, by device id. Keep is called when
	// they change, with those to have from now on: also with some of them, when the
	// others could not be had.
	Credentials func(ctx context.Context) (map[string]string, error)
	Keep        func(ctx context.Context, credentials map[string]string) error
}

// Account is an account with an organisation.
type Account struct {
	// Key is what people call it by: demo, demo2, ads, ads2.
	Key      string `json:"key"`
	Name     string `json:"name"`
	Password string `json:"-"`
	// OrganisationID and Organisation are empty when only the account was wanted.
	OrganisationID string `json:"organisation_id,omitempty"`
	Organisation   string `json:"organisation,omitempty"`
}

// Owner is an account whose organisation owns displays.
type Owner struct {
	Account
	Displays []Display `json:"displays,omitempty"`
}

// Display is a display of an owner.
type Display struct {
	DeviceID string `json:"device_id"`
	Name     string `json:"name"`
	TimeZone string `json:"time_zone"`
}

// Advertiser is an account whose organisation books air time.
type Advertiser struct {
	Account
	Orders []Order `json:"orders,omitempty"`
}

// Order is what an advertiser has booked.
type Order struct {
	OrderID string `json:"order_id"`
	Title   string `json:"title"`
}

// Demo is what there is.
type Demo struct {
	Owners      []Owner
	Advertisers []Advertiser
	// Changed says that something of it was not there before.
	Changed bool
}

// OwnerKeys are what the owners are called by.
func OwnerKeys() []string {
	var keys []string
	for _, o := range owners() {
		keys = append(keys, o.key)
	}
	return keys
}

// Keys are what all accounts are called by.
func Keys() []string {
	keys := OwnerKeys()
	for _, a := range advertisers() {
		keys = append(keys, a.key)
	}
	return keys
}

// within bounds the whole: what is missing of a platform that comes up is there
// long before.
const within = 3 * time.Minute

// MakeAccount signs the first owner up, unless that was done before, and makes
// nothing else. Of cfg it needs Gateway and Folder.
func MakeAccount(ctx context.Context, cfg Config) (Owner, error) {
	m, err := open(cfg)
	if err != nil {
		return Owner{}, err
	}
	defer m.conn.Close()
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	first := owners()[0]
	k, err := m.signUp(ctx, first.member)
	if err != nil {
		return Owner{}, fmt.Errorf("making the account %s: %w", first.account, err)
	}
	return Owner{Account: Account{Key: first.key, Name: k.Name, Password: k.Password}}, nil
}

// Make makes what is not there yet, and leaves what is: what people changed by hand
// stays so, but for displays that they deleted. What the advertisers booked is booked
// again when it is over. It may be called while the platform comes up: calls are
// repeated until somebody answers them. Of several that make it at once one does, and
// the others find it.
func Make(ctx context.Context, cfg Config) (Demo, error) {
	m, err := open(cfg)
	if err != nil {
		return Demo{}, err
	}
	defer m.conn.Close()
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	lock, err := files.Lock(ctx, filepath.Join(cfg.Folder, "demo.lock"), nil)
	if err != nil {
		return Demo{}, err
	}
	defer lock.Close()
	if m.credentials, err = cfg.Credentials(ctx); err != nil {
		return Demo{}, err
	}
	all := owners()
	if m.pictures, err = drawMedia(all); err != nil {
		return Demo{}, err
	}
	made := Demo{Owners: make([]Owner, len(all))}
	group, making := errgroup.WithContext(ctx)
	for i, o := range all {
		group.Go(func() error {
			var err error
			if made.Owners[i], err = m.owner(making, o); err != nil {
				return fmt.Errorf("making the displays of %s: %w", o.account, err)
			}
			return nil
		})
	}
	err = group.Wait()
	// What was claimed is kept, whatever became of the rest: it cannot be had again.
	keeping, cancelKeeping := context.WithTimeout(context.WithoutCancel(ctx), keepWithin)
	defer cancelKeeping()
	if err := errors.Join(err, m.keep(keeping, made, err == nil)); err != nil {
		return Demo{}, err
	}
	if made.Advertisers, err = m.advertise(ctx, all, made.Owners); err != nil {
		return Demo{}, err
	}
	if err := m.logOut(ctx); err != nil {
		return Demo{}, err
	}
	made.Changed = m.changed
	return made, nil
}

// keepWithin bounds the keeping of credentials when there is no other time left.
const keepWithin = 15 * time.Second

// maker makes the demo.
type maker struct {
	cfg           Config
	conn          *grpc.ClientConn
	accounts      accountv1.AccountServiceClient
	organisations accountv1.OrganisationServiceClient
	devices       devicev1.DeviceServiceClient
	orders        orderv1.OrderServiceClient
	texts         orderv1.CreativeServiceClient
	wallets       orderv1.WalletServiceClient
	http          *http.Client
	pictures      media
	credentials   map[string]string // that players have already

	mu      sync.Mutex
	changed bool
	claimed map[string]string
	tokens  map[string]string // of who is logged in, by organisation
}

func open(cfg Config) (*maker, error) {
	conn, err := grpc.NewClient(cfg.Gateway, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUnaryInterceptor(patiently))
	if err != nil {
		return nil, fmt.Errorf("reaching the gateway %s: %w", cfg.Gateway, err)
	}
	return &maker{
		cfg: cfg, conn: conn, claimed: make(map[string]string), tokens: make(map[string]string), http: &http.Client{Timeout: requestWithin},
		accounts: accountv1.NewAccountServiceClient(conn), organisations: accountv1.NewOrganisationServiceClient(conn), devices: devicev1.NewDeviceServiceClient(conn),
		orders: orderv1.NewOrderServiceClient(conn), texts: orderv1.NewCreativeServiceClient(conn), wallets: orderv1.NewWalletServiceClient(conn),
	}, nil
}

// patiently repeats calls while nobody is there to answer them, and while the gateway
// does not know the service yet.
func patiently(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	const pause = 50 * time.Millisecond
	for {
		err := invoke(ctx, method, request, reply, conn, options...)
		if !passes(err) {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}

// passes says whether what an error says may soon be otherwise.
func passes(err error) bool {
	s := status.Convert(err)
	switch s.Code() {
	case codes.Unavailable, codes.Unimplemented:
		return true
	case codes.ResourceExhausted:
		return slices.ContainsFunc(s.Details(), func(detail any) bool {
			info, ok := detail.(*errdetails.ErrorInfo)
			return ok && info.GetReason() == "OVERLOADED"
		})
	}
	return false
}

func (m *maker) change() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.changed = true
}

// logIn makes an account with its organisation, unless that was done before, and logs
// it in until logOut. It returns a token with the roles of now.
func (m *maker) logIn(ctx context.Context, who member) (Account, string, error) {
	k, err := m.signUp(ctx, who)
	if err != nil {
		return Account{}, "", err
	}
	session, err := m.accounts.LogIn(ctx, &accountv1.LogInRequest{Name: k.Name, Password: k.Password})
	if err != nil {
		return Account{}, "", fmt.Errorf("logging in (its password is in %s): %w", keptPath(m.cfg.Folder, who.key), err)
	}
	token := session.GetAccessToken()
	if k.OrganisationID == "" {
		made, err := m.organisations.CreateOrganisation(bearer(ctx, token), &accountv1.CreateOrganisationRequest{
			RequestId: k.RequestID, Name: who.organisation, Kind: who.kind,
		})
		if err != nil {
			return Account{}, "", fmt.Errorf("making the organisation %s: %w", who.organisation, err)
		}
		k.OrganisationID = made.GetOrganisation().GetOrganisationId()
		if err := k.write(m.cfg.Folder, who.key); err != nil {
			return Account{}, "", err
		}
		m.change()
		// Only a new token says that it is the owner's.
		refreshed, err := m.accounts.RefreshSession(ctx, &accountv1.RefreshSessionRequest{RequestId: requestID(), RefreshToken: session.GetRefreshToken()})
		if err != nil {
			return Account{}, "", fmt.Errorf("logging in again: %w", err)
		}
		token = refreshed.GetAccessToken()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tokens[k.OrganisationID] = token
	return Account{Key: who.key, Name: k.Name, Password: k.Password, OrganisationID: k.OrganisationID, Organisation: who.organisation}, token, nil
}

// logOut ends all sessions: nobody needs them any more.
func (m *maker) logOut(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for organisation, token := range m.tokens {
		if _, err := m.accounts.LogOut(bearer(ctx, token), &accountv1.LogOutRequest{}); err != nil {
			return fmt.Errorf("logging out: %w", err)
		}
		delete(m.tokens, organisation)
	}
	return nil
}

// owner makes one, and its displays.
func (m *maker) owner(ctx context.Context, o owner) (Owner, error) {
	account, token, err := m.logIn(ctx, o.member)
	if err != nil {
		return Owner{}, err
	}
	made := Owner{Account: account, Displays: make([]Display, len(o.displays))}
	for _, c := range o.creatives {
		if err := m.upload(ctx, token, account.OrganisationID, m.pictures[c.id]); err != nil {
			return Owner{}, fmt.Errorf("uploading the picture of %s: %w", c.id, err)
		}
	}
	ctx = bearer(ctx, token)
	there, err := m.displays(ctx, account.OrganisationID)
	if err != nil {
		return Owner{}, err
	}
	group, making := errgroup.WithContext(ctx)
	for i, d := range o.displays {
		group.Go(func() error {
			device, err := m.display(making, account.OrganisationID, d, there[d.name])
			if err != nil {
				return fmt.Errorf("%s: %w", d.name, err)
			}
			made.Displays[i] = Display{DeviceID: device, Name: d.name, TimeZone: d.zone}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return Owner{}, err
	}
	return made, nil
}

// signUp makes the account unless that was done before. The request_id is kept
// before it is used, so that a sign-up that was cut off is repeated and not made
// twice.
func (m *maker) signUp(ctx context.Context, who member) (kept, error) {
	k, err := readKept(m.cfg.Folder, who.key)
	if err != nil || k.AccountID != "" {
		return k, err
	}
	if k.Name == "" {
		k = kept{Name: who.account, Password: rand.Text(), RequestID: requestID()}
		if err := k.write(m.cfg.Folder, who.key); err != nil {
			return k, err
		}
	}
	answer, err := m.accounts.SignUp(ctx, &accountv1.SignUpRequest{RequestId: k.RequestID, Name: k.Name, Password: k.Password})
	if status.Code(err) == codes.AlreadyExists {
		return k, fmt.Errorf("signing up: somebody else has this name, so that its password is not known here: %w", err)
	}
	if err != nil {
		return k, fmt.Errorf("signing up: %w", err)
	}
	m.change()
	k.AccountID = answer.GetAccount().GetAccountId()
	return k, k.write(m.cfg.Folder, who.key)
}

// displays are an organisation's, by name.
func (m *maker) displays(ctx context.Context, organisation string) (map[string]*devicev1.Device, error) {
	const pageSize = 200
	found := make(map[string]*devicev1.Device)
	request := &devicev1.ListDevicesRequest{OrganisationId: organisation, PageSize: pageSize}
	for {
		page, err := m.devices.ListDevices(ctx, request)
		if err != nil {
			return nil, fmt.Errorf("listing the displays: %w", err)
		}
		for _, device := range page.GetDevices() {
			found[device.GetSettings().GetName()] = device
		}
		if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
			return found, nil
		}
	}
}

// display makes what is missing of one, device when it is there, and returns its id.
func (m *maker) display(ctx context.Context, organisation string, d display, device *devicev1.Device) (string, error) {
	if device == nil {
		made, err := m.devices.CreateDevice(ctx, &devicev1.CreateDeviceRequest{OrganisationId: organisation, RequestId: requestID(), Settings: d.settings()})
		if err != nil {
			return "", fmt.Errorf("making the display: %w", err)
		}
		m.change()
		device = made.GetDevice()
	}
	id := device.GetDeviceId()
	if err := m.playlist(ctx, organisation, id, d); err != nil {
		return "", err
	}
	if m.credentials[id] == "" && device.GetState() != devicev1.DeviceState_DEVICE_STATE_REVOKED {
		return id, m.claim(ctx, organisation, id)
	}
	return id, nil
}

// playlist sets what a display plays, unless somebody has set something else.
func (m *maker) playlist(ctx context.Context, organisation, id string, d display) error {
	found, err := m.devices.GetPlaylist(ctx, &devicev1.GetPlaylistRequest{OrganisationId: organisation, DeviceId: id})
	if err != nil {
		return fmt.Errorf("reading the playlist: %w", err)
	}
	wanted := d.items(m.pictures)
	have := found.GetPlaylist()
	ours := slices.EqualFunc(have.GetItems(), wanted, func(a, b *devicev1.PlaylistItem) bool { return a.GetCreativeId() == b.GetCreativeId() })
	same := slices.EqualFunc(have.GetItems(), wanted, func(a, b *devicev1.PlaylistItem) bool {
		return a.GetUrl() == b.GetUrl() && a.GetSha256() == b.GetSha256() && a.GetDurationMs() == b.GetDurationMs()
	})
	if have.GetVersion() > 0 && (same || !ours) {
		return nil
	}
	if _, err := m.devices.PutDefaultPlaylist(ctx, &devicev1.PutDefaultPlaylistRequest{OrganisationId: organisation, DeviceId: id, Items: wanted}); err != nil {
		return fmt.Errorf("setting the playlist: %w", err)
	}
	m.change()
	return nil
}

// claim gets a player's credentials, as a player does.
func (m *maker) claim(ctx context.Context, organisation, id string) error {
	const attempts = 3
	var err error
	for range attempts {
		var code *devicev1.CreateClaimCodeResponse
		if code, err = m.devices.CreateClaimCode(ctx, &devicev1.CreateClaimCodeRequest{OrganisationId: organisation, DeviceId: id}); err != nil {
			return fmt.Errorf("making a claim code: %w", err)
		}
		var claimed *devicev1.ClaimDeviceResponse
		claimed, err = m.devices.ClaimDevice(nobody(ctx), &devicev1.ClaimDeviceRequest{ClaimCode: code.GetClaimCode()})
		if err == nil {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.claimed[claimed.GetCredentials().GetDeviceId()] = claimed.GetCredentials().GetSecret()
			return nil
		}
		if status.Code(err) != codes.Unauthenticated {
			break
		}
		// The code is used up: the call was repeated, because its answer was lost.
	}
	return fmt.Errorf("claiming: %w", err)
}

// keep hands on the credentials that are new, and forgets those of displays that are
// gone, when all that are there are known.
func (m *maker) keep(ctx context.Context, made Demo, all bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	credentials := maps.Clone(m.credentials)
	if credentials == nil {
		credentials = make(map[string]string)
	}
	maps.Copy(credentials, m.claimed)
	if all {
		maps.DeleteFunc(credentials, func(id, _ string) bool { return !made.has(id) })
	}
	if maps.Equal(credentials, m.credentials) {
		return nil
	}
	m.changed = true
	if err := m.cfg.Keep(ctx, credentials); err != nil {
		return fmt.Errorf("keeping the credentials of the displays: %w", err)
	}
	return nil
}

func (d Demo) has(deviceID string) bool {
	for _, o := range d.Owners {
		if slices.ContainsFunc(o.Displays, func(display Display) bool { return display.DeviceID == deviceID }) {
			return true
		}
	}
	return false
}

func requestID() string { return "demo-" + rand.Text() }

// bearer returns a context whose calls carry an access token.
func bearer(ctx context.Context, token string) context.Context {
	return metadata.NewOutgoingContext(ctx, metadata.Pairs("authorization", "Bearer "+token))
}

// nobody returns a context whose calls carry none, as those of a player.
func nobody(ctx context.Context) context.Context {
	return metadata.NewOutgoingContext(ctx, metadata.MD{})
}

// kept is what is kept of an account, in a file that its user alone reads.
type kept struct {
	Name      string `json:"name"`
	Password  string `json:"password"`
	RequestID string `json:"request_id"`
	// AccountID and OrganisationID are empty until they were made.
	AccountID      string `json:"account_id,omitempty"`
	OrganisationID string `json:"organisation_id,omitempty"`
}

func keptPath(folder, key string) string { return filepath.Join(folder, key+"-account.json") }

// readKept returns the zero value of one that was never made.
func readKept(folder, key string) (kept, error) {
	var k kept
	text, err := os.ReadFile(keptPath(folder, key))
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err != nil {
		return k, fmt.Errorf("reading the account %s: %w", key, err)
	}
	if err := json.Unmarshal(text, &k); err != nil {
		return k, fmt.Errorf("reading the account %s from %s: %w", key, keptPath(folder, key), err)
	}
	return k, nil
}

func (k kept) write(folder, key string) error {
	text, err := json.MarshalIndent(k, "", "  ")
	if err != nil {
		return fmt.Errorf("keeping the account %s: %w", key, err)
	}
	if err := files.Replace(keptPath(folder, key), append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("keeping the account %s: %w", key, err)
	}
	return nil
}

// ReadAccount returns an account that was made before. The error says how to make it.
func ReadAccount(folder, key string) (Account, error) {
	if !slices.Contains(Keys(), key) {
		return Account{}, fmt.Errorf("nobody is called %q: there are %v", key, Keys())
	}
	k, err := readKept(folder, key)
	if err != nil {
		return Account{}, err
	}
	if k.AccountID == "" {
		return Account{}, fmt.Errorf("there is no account %s: marquee up makes it", key)
	}
	return Account{Key: key, Name: k.Name, Password: k.Password, OrganisationID: k.OrganisationID}, nil
}
