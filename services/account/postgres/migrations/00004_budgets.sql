-- +goose Up

COMMENT ON TABLE log_in_failures IS 'What wrong passwords have used up of the budget that there is for each name, address, place and device, and API keys of that of their organisation.';

-- +goose Down

COMMENT ON TABLE log_in_failures IS 'What wrong passwords have used up of the budget that there is for each name, address, place and device.';
