import type { JsonObject } from '../src/security/json-tree.js'

/** What a read shows as the placeholder in the document below: JSON Pointers of its 11 secrets. */
export const SETTINGS_SECRETS = [
  '/api_keys/openai',
  '/api_keys/anthropic',
  '/api_keys/groq',
  '/auth_password',
  '/database_password',
  '/database_ssl_key',
  '/database_url',
  '/mcp_server_token',
  '/mcp_servers',
  '/rfc_password',
  '/root_password',
]

/**
 * A settings document of the consumer's shape: 102 keys, of which 42 strings, 29 integers, 20 booleans, 4 floats
 * and 7 objects, about 3.5 KB. Made up and always the same; no value is anybody's credential.
 */
export function settingsDocument(): JsonObject {
  return { ...strings(), ...integers(), ...booleans(), ...FLOATS, ...objects() }
}

/** The same as Python's json.dumps spells it, where a whole float keeps its `.0`. */
export function settingsText(): string {
  return JSON.stringify(settingsDocument()).replace(
    '"browser_model_temperature":1',
    '"browser_model_temperature":1.0',
  )
}

const MODELS = [
  'chat_model',
  'util_model',
  'embed_model',
  'browser_model',
  'coding_model',
  'supervisor_model',
]
const FLOATS = {
  chat_model_ctx_history: 0.7,
  memory_recall_threshold: 0.65,
  browser_model_temperature: 1,
  speech_silence_threshold: 0.3,
}

function strings(): JsonObject {
  return {
    ...named(MODELS, 'provider', (i) => ['OPENAI', 'ANTHROPIC', 'GROQ'][i % 3] as string),
    ...named(MODELS, 'name', (i) => `vendor/model-${i + 1}`),
    ...named(MODELS, 'api_base', (i) => (i % 2 === 0 ? '' : `https://models-${i}.example.test/v1`)),
    ...numbered('agent_note', 11, (i) => `Note ${i}: ünïcode ✓ "quoted" and a \\ backslash`),
    agent_prompts_subdir: 'default',
    agent_memory_subdir: 'main',
    auth_login: 'made-up-admin',
    auth_password: 'made-up-auth-password',
    root_password: 'made-up-root-password',
    rfc_password: 'made-up-rfc-password',
    rfc_url: 'localhost',
    mcp_server_token: 'made-up-mcp-token',
    mcp_servers: '{"mcpServers": {"files": {"command": "npx", "env": {"KEY": "made-up"}}}}',
    database_password: 'made-up-database-password',
    database_url: 'postgresql://settings:made-up@db.example.test:5432/settings',
    database_ssl_key: '-----BEGIN PRIVATE KEY-----\nmade-up\n-----END PRIVATE KEY-----\n',
    stt_language: 'en',
  }
}

function integers(): JsonObject {
  return {
    ...named(MODELS, 'ctx_length', (i) => 8_192 * (i + 1)),
    ...named(MODELS, 'max_tokens', (i) => 1_024 * (i + 1)),
    ...named(MODELS, 'rl_requests', (i) => i * 10),
    ...numbered('timeout_seconds', 11, (i) => i * 30),
  }
}

function booleans(): JsonObject {
  return {
    ...named(MODELS, 'vision', (i) => i % 2 === 0),
    ...numbered('feature_enabled', 14, (i) => i % 3 !== 0),
  }
}

function objects(): JsonObject {
  return {
    ...named(MODELS, 'kwargs', (i) => ({ temperature: i, stop: ['###'], extra: { seed: 40 + i } })),
    api_keys: {
      openai: 'made-up-openai-key',
      anthropic: 'made-up-anthropic-key',
      groq: 'made-up-groq-key',
      unused: '',
    },
  }
}

function named(prefixes: string[], suffix: string, value: (index: number) => JsonObject[string]): JsonObject {
  return Object.fromEntries(prefixes.map((prefix, index) => [`${prefix}_${suffix}`, value(index)]))
}

function numbered(prefix: string, count: number, value: (number: number) => JsonObject[string]): JsonObject {
  return Object.fromEntries(Array.from({ length: count }, (_, i) => [`${prefix}_${i + 1}`, value(i + 1)]))
}
