-- The tables as prisma/schema.prisma describes them, made by Prisma: plain DDL, for PostgreSQL and pg-mem.
-- CreateTable
CREATE TABLE "auth_users" (
    "id" SERIAL NOT NULL,
    "username" VARCHAR(255) NOT NULL,
    "password_hash" VARCHAR(512) NOT NULL,
    "is_active" BOOLEAN NOT NULL DEFAULT true,
    "last_login" TIMESTAMPTZ(6),
    "created_at" TIMESTAMPTZ(6) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updated_at" TIMESTAMPTZ(6) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "failed_login_attempts" INTEGER NOT NULL DEFAULT 0,
    "locked_until" TIMESTAMPTZ(6),
    "password_changed_at" TIMESTAMPTZ(6) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "must_change_password" BOOLEAN NOT NULL DEFAULT false,
    "username_key" VARCHAR(255),
    "role" VARCHAR(32) NOT NULL DEFAULT 'user',
    "version" INTEGER NOT NULL DEFAULT 1,

    CONSTRAINT "auth_users_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "auth_sessions" (
    "id" SERIAL NOT NULL,
    "session_token" VARCHAR(512) NOT NULL,
    "user_id" INTEGER NOT NULL,
    "created_at" TIMESTAMPTZ(6) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "expires_at" TIMESTAMPTZ(6) NOT NULL,
    "last_activity" TIMESTAMPTZ(6) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "ip_address" INET,
    "user_agent" TEXT,
    "authenticated_at" TIMESTAMPTZ(6) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "auth_sessions_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "auth_oauth_tokens" (
    "id" SERIAL NOT NULL,
    "user_id" INTEGER NOT NULL,
    "provider" VARCHAR(50) NOT NULL,
    "access_token" TEXT NOT NULL,
    "refresh_token" TEXT,
    "expires_at" TIMESTAMPTZ(6),
    "created_at" TIMESTAMPTZ(6) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "auth_oauth_tokens_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "auth_api_keys" (
    "id" SERIAL NOT NULL,
    "user_id" INTEGER NOT NULL,
    "name" VARCHAR(128) NOT NULL,
    "prefix" VARCHAR(16) NOT NULL,
    "key_hash" VARCHAR(64) NOT NULL,
    "scopes" TEXT[],
    "created_at" TIMESTAMPTZ(6) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "expires_at" TIMESTAMPTZ(6),
    "last_used_at" TIMESTAMPTZ(6),

    CONSTRAINT "auth_api_keys_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "auth_throttle" (
    "bucket" VARCHAR(128) NOT NULL,
    "failures" INTEGER NOT NULL DEFAULT 0,
    "window_start" TIMESTAMPTZ(6) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "locked_until" TIMESTAMPTZ(6),

    CONSTRAINT "auth_throttle_pkey" PRIMARY KEY ("bucket")
);

-- CreateTable
CREATE TABLE "auth_setup_tokens" (
    "id" INTEGER NOT NULL DEFAULT 1,
    "token_hash" VARCHAR(64) NOT NULL,
    "expires_at" TIMESTAMPTZ(6) NOT NULL,

    CONSTRAINT "auth_setup_tokens_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "config_entries" (
    "scope" VARCHAR(16) NOT NULL,
    "owner" VARCHAR(128) NOT NULL,
    "environment" VARCHAR(128) NOT NULL,
    "key" VARCHAR(128) NOT NULL,
    "value" TEXT NOT NULL,
    "version" INTEGER NOT NULL,
    "secret_paths" TEXT[],
    "tags" TEXT[],
    "description" TEXT,
    "deleted" BOOLEAN NOT NULL DEFAULT false,
    "created_at" TIMESTAMPTZ(6) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updated_at" TIMESTAMPTZ(6) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updated_by" VARCHAR(255) NOT NULL,

    CONSTRAINT "config_entries_pkey" PRIMARY KEY ("scope","owner","environment","key")
);

-- CreateTable
CREATE TABLE "config_revisions" (
    "revision" BIGSERIAL NOT NULL,
    "scope" VARCHAR(16) NOT NULL,
    "owner" VARCHAR(128) NOT NULL,
    "environment" VARCHAR(128) NOT NULL,
    "key" VARCHAR(128) NOT NULL,
    "version" INTEGER NOT NULL,
    "operation" VARCHAR(16) NOT NULL,
    "value" TEXT NOT NULL,
    "secret_paths" TEXT[],
    "tags" TEXT[],
    "description" TEXT,
    "created_at" TIMESTAMPTZ(6) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "actor_type" VARCHAR(16) NOT NULL,
    "actor_id" INTEGER,
    "actor_name" VARCHAR(255) NOT NULL,
    "request_id" VARCHAR(128),

    CONSTRAINT "config_revisions_pkey" PRIMARY KEY ("revision")
);

-- CreateTable
CREATE TABLE "audit_events" (
    "id" BIGSERIAL NOT NULL,
    "received_at" TIMESTAMPTZ(6) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "event_id" UUID NOT NULL,
    "occurred_at" TIMESTAMPTZ(6) NOT NULL,
    "event_type" VARCHAR(128) NOT NULL,
    "level" VARCHAR(16) NOT NULL,
    "source" VARCHAR(16) NOT NULL,
    "actor_type" VARCHAR(16) NOT NULL,
    "actor_id" INTEGER,
    "actor_name" VARCHAR(255),
    "on_behalf_of" INTEGER,
    "action" VARCHAR(128),
    "target" VARCHAR(512),
    "user_id" VARCHAR(256),
    "agent_id" VARCHAR(256),
    "session_id" VARCHAR(256),
    "request_id" VARCHAR(256),
    "trace_id" VARCHAR(256),
    "event" TEXT NOT NULL,

    CONSTRAINT "audit_events_pkey" PRIMARY KEY ("received_at","id")
);

-- CreateTable
CREATE TABLE "audit_event_ids" (
    "event_id" UUID NOT NULL,
    "actor" VARCHAR(64) NOT NULL,
    "on_behalf_of" INTEGER,
    "body_hash" VARCHAR(64) NOT NULL,
    "received_at" TIMESTAMPTZ(6) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "audit_event_ids_pkey" PRIMARY KEY ("event_id")
);

-- CreateTable
CREATE TABLE "idempotency_keys" (
    "caller" VARCHAR(64) NOT NULL,
    "route" VARCHAR(256) NOT NULL,
    "key" VARCHAR(255) NOT NULL,
    "request_hash" VARCHAR(64) NOT NULL,
    "status" INTEGER NOT NULL,
    "response" TEXT NOT NULL,
    "created_at" TIMESTAMPTZ(6) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "idempotency_keys_pkey" PRIMARY KEY ("caller","route","key")
);

-- CreateIndex
CREATE UNIQUE INDEX "auth_users_username_key" ON "auth_users"("username");

-- CreateIndex
CREATE UNIQUE INDEX "auth_users_username_key_key" ON "auth_users"("username_key");

-- CreateIndex
CREATE UNIQUE INDEX "auth_sessions_session_token_key" ON "auth_sessions"("session_token");

-- CreateIndex
CREATE INDEX "auth_sessions_user_id_idx" ON "auth_sessions"("user_id");

-- CreateIndex
CREATE INDEX "auth_sessions_expires_at_idx" ON "auth_sessions"("expires_at");

-- CreateIndex
CREATE UNIQUE INDEX "auth_oauth_tokens_user_id_provider_key" ON "auth_oauth_tokens"("user_id", "provider");

-- CreateIndex
CREATE UNIQUE INDEX "auth_api_keys_key_hash_key" ON "auth_api_keys"("key_hash");

-- CreateIndex
CREATE INDEX "auth_api_keys_user_id_idx" ON "auth_api_keys"("user_id");

-- CreateIndex
CREATE INDEX "auth_throttle_window_start_idx" ON "auth_throttle"("window_start");

-- CreateIndex
CREATE UNIQUE INDEX "config_revisions_scope_owner_environment_key_version_key" ON "config_revisions"("scope", "owner", "environment", "key", "version");

-- CreateIndex
CREATE INDEX "audit_events_actor_id_received_at_id_idx" ON "audit_events"("actor_id", "received_at", "id");

-- CreateIndex
CREATE INDEX "audit_events_session_id_received_at_id_idx" ON "audit_events"("session_id", "received_at", "id");

-- CreateIndex
CREATE INDEX "audit_events_user_id_received_at_id_idx" ON "audit_events"("user_id", "received_at", "id");

-- CreateIndex
CREATE INDEX "audit_events_event_type_received_at_id_idx" ON "audit_events"("event_type", "received_at", "id");

-- CreateIndex
CREATE INDEX "audit_event_ids_received_at_idx" ON "audit_event_ids"("received_at");

-- CreateIndex
CREATE INDEX "idempotency_keys_created_at_idx" ON "idempotency_keys"("created_at");

-- AddForeignKey
ALTER TABLE "auth_sessions" ADD CONSTRAINT "auth_sessions_user_id_fkey" FOREIGN KEY ("user_id") REFERENCES "auth_users"("id") ON DELETE CASCADE ON UPDATE CASCADE;

-- AddForeignKey
ALTER TABLE "auth_oauth_tokens" ADD CONSTRAINT "auth_oauth_tokens_user_id_fkey" FOREIGN KEY ("user_id") REFERENCES "auth_users"("id") ON DELETE CASCADE ON UPDATE CASCADE;

-- AddForeignKey
ALTER TABLE "auth_api_keys" ADD CONSTRAINT "auth_api_keys_user_id_fkey" FOREIGN KEY ("user_id") REFERENCES "auth_users"("id") ON DELETE CASCADE ON UPDATE CASCADE;

