# SPDX-License-Identifier: MPL-2.0

variable "plugin_version" {
  description = "The version that the plugin reports: v and a semantic version."
  type        = string
  default     = "v0.1.0"
}

variable "plugin_sha256" {
  description = "The SHA-256 of the plugin's binary, in hexadecimal."
  type        = string
}

variable "app" {
  description = "The name of the app in Vault, of your choice."
  type        = string
  default     = "myapp"
}

variable "app_key" {
  description = "The app's Client ID (AppKey) in DingTalk's console."
  type        = string
}

variable "app_secret" {
  description = "The app's Client Secret (AppSecret). Give it as TF_VAR_app_secret in the environment."
  type        = string
  sensitive   = true
}

variable "base_url" {
  description = "DingTalk's API. An app of the China edition needs https://api.dingtalk.com."
  type        = string
  default     = "https://api.dingtalk.io"
}
