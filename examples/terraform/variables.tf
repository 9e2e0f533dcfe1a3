# SPDX-License-Identifier: MPL-2.0

variable "plugins" {
  description = "The versions to register, such as v0.1.0, each with the SHA-256 of its binary, in hexadecimal."
  type        = map(string)
}

variable "plugin_version" {
  description = "The version that the mount runs: one of plugins."
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

# Ephemeral: Terraform stores it neither in the state nor in a saved plan.
variable "app_secret" {
  description = "The app's Client Secret (AppSecret), as TF_VAR_app_secret in the environment, when the app is stored."
  type        = string
  ephemeral   = true
  default     = null
}

variable "app_secret_version" {
  description = "Any number. Raise it to store another app_secret."
  type        = number
  default     = 1
}

variable "base_url" {
  description = "DingTalk's API. An app of the China edition needs https://api.dingtalk.com."
  type        = string
  default     = "https://api.dingtalk.io"
}
