-- An Idempotency-Key is kept for 24 hours. Who sends it again later begins anew: the old answer goes,
-- and no caller can make a younger one go. Restrictive, because caller_own lets pass all of one's own.
GRANT DELETE ON idempotency_keys TO gary_caller;
CREATE POLICY caller_forgets_expired ON idempotency_keys AS RESTRICTIVE FOR DELETE TO gary_caller
  USING (created_at <= now() - interval '24 hours');

-- When an answer was given is not for its caller to say: it would live longer.
REVOKE INSERT ON idempotency_keys FROM gary_caller;
GRANT INSERT (caller, route, key, request_hash, status, response) ON idempotency_keys TO gary_caller;
