-- DropIndex
DROP INDEX "auth_throttle_window_start_idx";

-- AlterTable
ALTER TABLE "auth_throttle" ADD COLUMN     "lockouts" INTEGER NOT NULL DEFAULT 0,
ADD COLUMN     "pending" INTEGER NOT NULL DEFAULT 0,
ADD COLUMN     "pending_since" TIMESTAMPTZ(6),
ADD COLUMN     "succeeded_at" TIMESTAMPTZ(6),
ADD COLUMN     "touched_at" TIMESTAMPTZ(6) NOT NULL DEFAULT CURRENT_TIMESTAMP;

-- AlterTable
ALTER TABLE "auth_users" ALTER COLUMN "locked_until" SET DATA TYPE TIMESTAMP(6);

-- CreateTable
CREATE TABLE "auth_adoption" (
    "id" INTEGER NOT NULL DEFAULT 1,
    "adopted_at" TIMESTAMPTZ(6) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "oauth_tokens" BOOLEAN NOT NULL DEFAULT false,
    "finished_at" TIMESTAMPTZ(6),

    CONSTRAINT "auth_adoption_pkey" PRIMARY KEY ("id")
);

-- CreateIndex
CREATE INDEX "auth_throttle_touched_at_idx" ON "auth_throttle"("touched_at");
